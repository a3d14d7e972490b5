"""Shows or deletes everything that any feature stores about a caller."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

import orjson
from aiohttp import web

from proxy.caller_data import CallerData
from proxy.config import Strict
from proxy.host import RequestReader
from proxy.types import Route

log = logging.getLogger(__name__)
LATE = 1.0
"""Seconds after which other processes have written their records of calls that had ended: twice their longest delay."""
CHUNK = 64 * 1024
"""Bytes that are collected for one write."""
HEADERS = {"Content-Type": "application/json", "Content-Disposition": 'attachment; filename="data.json"'}


class Whose(Strict):
    """The query.  Only admins may name another user."""

    user: str | None = None


@dataclass(frozen=True, slots=True)
class Me:
    """several: whether other processes share the data, and may have records of a caller that are not written yet."""

    caller_data: Sequence[CallerData]
    requests: RequestReader
    several: bool

    def routes(self) -> Iterable[Route]:
        yield Route("GET", "/api/me/data", self.tell, "user")
        yield Route("DELETE", "/api/me/data", self.forget, "user")

    def whose(self, request: web.BaseRequest) -> str:
        """The user whose data is meant.  Raises Denied if the caller may not access it."""
        caller, user = self.requests.caller(request), self.requests.query(request, Whose).user
        return caller.whose(user) or caller.name

    async def tell(self, request: web.BaseRequest) -> web.StreamResponse:
        """All data of a user as one JSON document, streamed.  If it cannot be completed, the connection is aborted."""
        user = self.whose(request)
        return await self.requests.streamed(request, gathered(self.pieces(user)), HEADERS)

    async def pieces(self, user: str) -> AsyncIterator[bytes]:
        yield b'{"user":' + orjson.dumps(user) + b',"data":{'
        for index, kind in enumerate(self.caller_data):
            yield (b"," if index else b"") + orjson.dumps(kind.name) + b":["
            comma = b""
            async for one in kind.export(user):
                yield comma + orjson.dumps(one, default=dict)
                comma = b","
            yield b"]"
        yield b"}}"

    async def forget(self, request: web.BaseRequest) -> web.StreamResponse:
        """Delete all data of a user.  Raises Busy if some cannot be deleted now; other data may be deleted already."""
        user = self.whose(request)
        if self.several:
            await asyncio.sleep(LATE)  # otherwise their next batch would add some again
        deleted = {kind.name: await kind.forget(user) for kind in self.caller_data}
        return web.Response(body=orjson.dumps({"user": user, "deleted": deleted}), content_type="application/json")


async def gathered(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    waiting: list[bytes] = []
    size = 0
    async for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= CHUNK:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)
