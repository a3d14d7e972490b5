"""Everything that is kept of a caller, by whatever feature: told, or deleted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

import orjson
from aiohttp import web

from proxy.caller_data import Holding
from proxy.config import Strict
from proxy.host import Desk
from proxy.types import Route

log = logging.getLogger(__name__)
LATE = 1.0
"""Seconds after which other processes have written what was over before: twice what their records wait."""
CHUNK = 64 * 1024
"""Bytes that are gathered before they are written."""
HEADERS = {"Content-Type": "application/json", "Content-Disposition": 'attachment; filename="data.json"'}


class Whose(Strict):
    """Admins may name anybody."""

    user: str | None = None


@dataclass(frozen=True, slots=True)
class Me:
    """several: whether other processes may have something of a caller's that they have not written yet."""

    holdings: Sequence[Holding]
    desk: Desk
    several: bool

    def routes(self) -> Iterable[Route]:
        yield Route("GET", "/api/me/data", self.tell, "user")
        yield Route("DELETE", "/api/me/data", self.forget, "user")

    def whose(self, request: web.BaseRequest) -> str:
        """Raises Denied."""
        caller, user = self.desk.caller(request), self.desk.query(request, Whose).user
        return caller.whose(user) or caller.name

    async def tell(self, request: web.BaseRequest) -> web.StreamResponse:
        """A document that is read and written bit by bit.  One that cannot be finished breaks off."""
        user = self.whose(request)
        return await self.desk.streamed(request, gathered(self.pieces(user)), HEADERS)

    async def pieces(self, user: str) -> AsyncIterator[bytes]:
        yield b'{"user":' + orjson.dumps(user) + b',"data":{'
        for index, holding in enumerate(self.holdings):
            yield (b"," if index else b"") + orjson.dumps(holding.name) + b":["
            comma = b""
            async for one in holding.told(user):
                yield comma + orjson.dumps(one, default=dict)
                comma = b","
            yield b"]"
        yield b"}}"

    async def forget(self, request: web.BaseRequest) -> web.StreamResponse:
        """Raises Busy where something cannot be deleted now; what was deleted before stays so."""
        user = self.whose(request)
        if self.several:
            await asyncio.sleep(LATE)  # else it would come back with their next batch
        deleted = {holding.name: await holding.forget(user) for holding in self.holdings}
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
