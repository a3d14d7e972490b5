"""Our errors -> OpenAI's error JSON."""

from __future__ import annotations

import orjson

from proxy.errors import ProxyError
from proxy.wire import sse


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


def error_body(error: ProxyError) -> bytes:
    """`{"error": {message, type, param, code}}`, which every OpenAI SDK turns into its exceptions."""
    told = {"message": clean(str(error)), "type": error.kind, "param": error.param, "code": error.code}
    return orjson.dumps({"error": told})
