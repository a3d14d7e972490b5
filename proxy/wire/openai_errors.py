"""Our errors -> OpenAI's error JSON."""

from __future__ import annotations

import orjson

from proxy.errors import ProxyError


def error_body(error: ProxyError) -> bytes:
    """`{"error": {message, type, param, code}}`, which every OpenAI SDK turns into its exceptions."""
    told = {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}
    return orjson.dumps({"error": told})
