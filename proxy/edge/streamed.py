"""Writes answers piece by piece, and breaks off the connection if they cannot be completed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Final

from aiohttp import web

from proxy.edge.exchange import exchange_of
from proxy.errors import ProxyError

log = logging.getLogger(__name__)
PATIENCE: Final = 60.0
"""Seconds after which a client that reads nothing is disconnected."""


async def streamed(
    request: web.BaseRequest, pieces: AsyncIterator[bytes], headers: Mapping[str, str]
) -> web.StreamResponse:
    """Write an answer piece by piece.  Raises what fails before the first piece, which may be empty.

    On a later failure the connection is aborted, because a normal end would hide that the rest is missing.
    """
    exchange = exchange_of(request)
    first = await anext(pieces, b"")
    response = web.StreamResponse(headers={**exchange.headers, **headers})
    try:
        await response.prepare(request)
        await written(response, first)
        async for piece in pieces:
            await written(response, piece)
        await response.write_eof()
    except ProxyError as error:
        log.warning("%s breaks off: %s", request.path, error.why)
        exchange.error = error.code or error.kind
        break_off(request)
    except (ConnectionError, TimeoutError):
        break_off(request)
    return response


async def written(response: web.StreamResponse, piece: bytes) -> None:
    if piece:
        async with asyncio.timeout(PATIENCE):
            await response.write(piece)


def break_off(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()
