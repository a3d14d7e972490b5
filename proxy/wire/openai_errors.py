"""Our errors -> OpenAI's error JSON."""

from __future__ import annotations

from typing import Final

import orjson

from proxy.errors import ProxyError
from proxy.wire import sse

TOO_LONG: Final = "context_length_exceeded"


class SseStyle:
    """What streams in all of OpenAI's dialects have in common."""

    __slots__ = ()
    media_type = "text/event-stream; charset=utf-8"

    def comment(self, text: str) -> bytes:
        return sse.comment(text)

    def failed(self, error: ProxyError) -> bytes:
        """An error in a stream, which OpenAI's SDKs raise as an exception.  No `[DONE]` follows."""
        return sse.data(error_body(error))


def clean(text: str) -> str:
    """Text without lone surrogates, which orjson refuses and undecodable bytes in a header produce."""
    return text.encode(errors="replace").decode()


def message_of(error: ProxyError) -> str:
    """The message, with the code `context_length_exceeded` appended if that is the error's code.

    LangChain recognises this error only by the text of the SDK's exception, which consists of the message.
    """
    text = str(error)
    return f"{text} ({TOO_LONG})" if error.code == TOO_LONG and TOO_LONG not in text else text


def error_body(error: ProxyError) -> bytes:
    """`{"error": {message, type, param, code}}`, which every OpenAI SDK turns into its exceptions."""
    told = {"message": clean(message_of(error)), "type": error.kind, "param": error.param, "code": error.code}
    return orjson.dumps({"error": told})
