"""Answers that are written piece by piece, and break off where they cannot be finished."""

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
"""Seconds that a client may take nothing of it."""


async def streamed(
    request: web.BaseRequest, pieces: AsyncIterator[bytes], headers: Mapping[str, str]
) -> web.StreamResponse:
    """What fails before the first piece, which may be empty, is raised and told with its status.

    Afterwards only a connection that breaks says that the rest is missing: an end that looks like one would be a lie.
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
