"""Our errors -> OpenAI's error JSON."""

from __future__ import annotations

from typing import Final

import orjson

from proxy.errors import ProxyError
from proxy.wire import sse

TOO_LONG: Final = "context_length_exceeded"


class SseStyle:
    """What every dialect of OpenAI's does alike in a stream."""

    __slots__ = ()
    media_type = "text/event-stream; charset=utf-8"

    def comment(self, text: str) -> bytes:
        return sse.comment(text)

    def failed(self, error: ProxyError) -> bytes:
        """An error in the stream, which OpenAI's SDKs raise; no `[DONE]` follows."""
        return sse.data(error_body(error))


def clean(text: str) -> str:
    """Text that JSON can hold, whatever bytes a header brought."""
    return text.encode(errors="replace").decode()


def message_of(error: ProxyError) -> str:
    """With the code in it where LangChain knows the error by that: it looks at nothing but the text of the SDK's
    exception, which is the message alone."""
    text = str(error)
    return f"{text} ({TOO_LONG})" if error.code == TOO_LONG and TOO_LONG not in text else text


def error_body(error: ProxyError) -> bytes:
    """`{"error": {message, type, param, code}}`, which every OpenAI SDK turns into its exceptions."""
    told = {"message": clean(message_of(error)), "type": error.kind, "param": error.param, "code": error.code}
    return orjson.dumps({"error": told})
