"""A request's JSON body, read within bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import orjson
from aiohttp import hdrs, web

from proxy.errors import BadCall, TooLarge, WrongType
from proxy.types import JSON

UNREADABLE: Final = "invalid_body"
"""The code of a body after which nothing more can be read from its connection."""


async def read_json(request: web.BaseRequest) -> JSON:
    """Raises WrongType, TooLarge or BadCall."""
    kind = request.content_type
    if kind != "application/json" and hdrs.CONTENT_TYPE in request.headers and not kind.endswith("+json"):
        raise WrongType(
            f"Unsupported content type '{kind[:100]}': send 'Content-Type: application/json'.",
            code="unsupported_media_type",
        )
    body = await read_body(request)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadCall(f"The body is not JSON: {error}.", code="invalid_json") from None


async def read_body(request: web.BaseRequest) -> bytes:
    most = request.client_max_size
    if (request.content_length or 0) > most:
        raise too_large(most)
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large(most) from None
    except (web.RequestPayloadError, ValueError):
        request.content.feed_eof()  # what is left of it cannot be read either
        raise BadCall("The body is not encoded as its headers say.", code=UNREADABLE) from None


def check_notes(notes: Mapping[str, str], params: str) -> None:
    """Where the operator wants it exact, nothing is emulated, changed or ignored.  Raises BadCall."""
    if notes and params == "strict":
        name, fate = next(iter(notes.items()))
        message = f"'{name[:100]}' would be {fate}, and this server is set to refuse that (params: strict)."
        raise BadCall(message, param=name[:100], code="unsupported_parameter")


def too_large(most: int) -> TooLarge:
    return TooLarge(f"The body is larger than {most} bytes.", code="request_too_large")
