"""Reads a request's JSON body, within limits of size, depth and time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import orjson
from aiohttp import HttpVersion11, hdrs, web

from proxy.background import in_thread
from proxy.config import Requests
from proxy.errors import BadCall, TooLarge, TooSlow, WrongType
from proxy.types import JSON
from proxy.wire import read

Read = TypeVar("Read")
JSON_TYPE: Final = "application/json"
ENCODINGS: Final = ("identity", "gzip", "deflate")
LARGE: Final = 256 * 1024
"""Bytes of a body; only a larger one is checked for having too many values."""
CONTAINERS: Final = 100_000
"""Maximum number of objects and arrays in a body; each takes about a microsecond to parse, check and free."""
VALUES: Final = 500_000
"""Maximum number of values in a body, and of strings including keys; more than the tokens that OpenAI accepts in one
embeddings request."""
MANY: Final = 1000
"""Objects and arrays in a body from which on it is read in a thread and not in the event loop; each takes 20 µs."""
UNREADABLE: Final = "invalid_body"
"""The error code of a body that could not be read to its end, so that its connection must be closed."""


async def read_json(request: web.BaseRequest, bounds: Requests, any_type: bool = False) -> JSON:
    """The parsed body.  Raises what `read_text` and `parsed` raise."""
    return parsed(await read_text(request, bounds, any_type), bounds)


async def reading(body: bytes, read: Callable[[], Read]) -> Read:
    """The result of `read`, which parses and checks this body: in a thread if that takes long, so that others are
    served meanwhile."""
    if body.count(b"{") + body.count(b"[") < MANY:
        return read()
    return await in_thread(read)


async def read_text(request: web.BaseRequest, bounds: Requests, any_type: bool = False) -> bytes:
    """The body's bytes.  Raises WrongType, TooLarge, TooSlow or BadCall.

    any_type: accept every content type.
    """
    if (
        not any_type
        and request.headers.get(hdrs.CONTENT_TYPE, JSON_TYPE) != JSON_TYPE
        and not is_json(request.content_type)
    ):
        kind = request.content_type
        raise WrongType(
            f"Unsupported content type '{kind[:100]}': send 'Content-Type: application/json'.",
            code="unsupported_media_type",
        )
    return await read_body(request, bounds.body_timeout)


def parsed(body: bytes, bounds: Requests) -> JSON:
    """Raises BadCall if the body is not JSON, too deeply nested, or has too many values."""
    if len(body) > LARGE:
        not_many(body)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadCall(f"The body is not JSON: {error}.", code="invalid_json") from None
    if body.count(b"{") + body.count(b"[") > bounds.max_depth:  # fewer cannot be nested too deeply
        for name, part in value.items() if isinstance(value, dict) else [("the body", value)]:
            if type(part) in (dict, list):
                read.not_deep(part, name[:100], bounds.max_depth)
    return value


def not_many(body: bytes) -> None:
    """Raises BadCall for a body with so many values that parsing it would block the event loop for everybody: the time
    depends on the number of values, not on the size in bytes."""
    if body.count(b"{") + body.count(b"[") <= CONTAINERS and body.count(b",") <= VALUES:
        return
    texts, containers, commas = structure(body)
    if texts > VALUES or containers > CONTAINERS or commas > VALUES:
        message = f"The body has more than {CONTAINERS} objects and arrays, or more than {VALUES} values."
        raise BadCall(message, code="too_many_values")


def structure(body: bytes) -> tuple[int, int, int]:
    """The numbers of strings (including keys), of objects and arrays, and of commas between values, without parsing.

    If there are too many strings anyway, the other two are 0.
    """
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")
    texts = plain.count(b'"') // 2
    outside = b"" if texts > VALUES else b"".join(plain.split(b'"')[::2])
    return texts, outside.count(b"{") + outside.count(b"["), outside.count(b",")


def is_json(kind: str) -> bool:
    return kind == JSON_TYPE or kind.endswith("+json")


async def read_body(request: web.BaseRequest, patience: float) -> bytes:
    """The body, decompressed.  patience: seconds for all of it.  Raises WrongType, TooLarge, TooSlow or BadCall."""
    most = request.client_max_size
    if (request.content_length or 0) > most:
        raise too_large(most)
    await welcome(request)
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower()
    if encoding not in ENCODINGS:
        raise WrongType(f"The content encoding '{encoding[:40]}' is not supported.", code="unsupported_encoding")
    try:
        if request.content.is_eof():  # it arrived together with the head, as nearly all do
            return within(most, request.content.read_nowait())
        async with asyncio.timeout(patience):
            return await request.read()
    except TimeoutError:
        request.content.feed_eof()
        raise TooSlow(f"The body did not arrive within {patience:g} seconds.", code=UNREADABLE) from None
    except web.HTTPRequestEntityTooLarge:
        raise too_large(most) from None
    except (web.RequestPayloadError, ValueError):
        request.content.feed_eof()  # the rest of it cannot be read either
        raise BadCall("The body is not encoded as its headers say.", code=UNREADABLE) from None


def within(most: int, body: bytes) -> bytes:
    """The body itself.  Raises TooLarge if it has more than `most` bytes."""
    if len(body) > most:
        raise too_large(most)
    return body


async def welcome(request: web.BaseRequest) -> None:
    """Send `100 Continue` to a client that expects it before it sends its body."""
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun, which `output_size` is used to detect


def check_notes(notes: Mapping[str, str], params: str) -> None:
    """Raises BadCall if a parameter would not be honoured exactly although `params: strict` is configured."""
    if notes and params == "strict":
        name, fate = next(iter(notes.items()))
        message = f"'{name[:100]}' would be {fate}, and this server is set to refuse that (params: strict)."
        raise BadCall(message, param=name[:100], code="unsupported_parameter")


def too_large(most: int) -> TooLarge:
    return TooLarge(f"The body is larger than {most} bytes.", code="request_too_large")
