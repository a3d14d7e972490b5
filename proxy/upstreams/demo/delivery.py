"""Sends answers, as a stream or one document, with the faults that can happen meanwhile."""

import asyncio
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from .faults import LOADING, Fault
from .go_format import dumps
from .refusals import Refused

Json = dict[str, Any]
GARBAGE = b"<html><body>502 Bad Gateway</body></html>\n"
BEFORE_DELIVERY = LOADING | {"long_line"}
"""Faults that happen before delivery."""
DOCUMENT = "application/json; charset=utf-8"


class CutOff(Exception):
    """The simulator has reset the connection on purpose."""


def document(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=dumps(value), status=status, headers={"Content-Type": DOCUMENT})


def refusal(trouble: Refused) -> web.Response:
    return document({"error": trouble.message}, trouble.status)


@dataclass
class Delivery:
    """The delivery of one answer, whose lines are sent at once or collected for one document."""

    request: web.Request
    stream: bool
    fault: Fault | None
    delay: float = 0.0
    split: int = 0
    sent: int = 0
    kept: list[Json] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        if self.fault and self.fault.kind in BEFORE_DELIVERY:
            self.fault = None

    async def lines(self, lines: Iterable[Json]) -> bool:
        """Send all lines, or those before a fault.  Gives whether all were sent."""
        for line in lines:
            if self.delay and self.sent:
                await asyncio.sleep(self.delay)
            if await self.apply_fault():
                return False
            await self.line(line)
        return True

    async def apply_fault(self) -> bool:
        """Make the fault happen if it is due.  Gives whether it has ended the answer; a stall only delays it."""
        fault = self.fault
        if not fault or self.sent < fault.after:
            return False
        self.fault = None
        match fault.kind:
            case "stall":
                await fault.wait_until_over()
                return False
            case "reset":
                self.reset()
            case "garbage":
                await self.bytes(GARBAGE)
                self.kept.clear()
            case "status" | "error_line" | "nested":
                await self.error(fault)
        return True

    async def error(self, fault: Fault) -> None:
        if not self.stream or not self.response.prepared:
            raise Refused(400 if fault.kind == "nested" else fault.status, fault.text)
        await self.line({"error": fault.text})

    async def line(self, line: Json) -> None:
        self.sent += 1
        if self.stream:
            await self.bytes(dumps(line) + b"\n")
        else:
            self.kept.append(line)

    async def bytes(self, piece: bytes) -> None:
        """Written in several packets if the simulator splits lines."""
        if not self.response.prepared:
            await self.response.prepare(self.request)
        if not self.split:
            return await self.response.write(piece)
        for start in range(0, len(piece), self.split):
            await self.response.write(piece[start : start + self.split])
            await asyncio.sleep(0)

    def reset(self) -> None:
        """Ends the connection with a TCP reset."""
        if (transport := self.request.transport) is not None:
            link = transport.get_extra_info("socket")
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        raise CutOff

    async def end(self) -> web.StreamResponse:
        if not self.response.prepared:
            await self.response.prepare(self.request)
        await self.response.write_eof()
        return self.response


async def deliver_document(request: web.Request, value: Json, fault: Fault | None) -> web.StreamResponse:
    """Answer with a document that was not generated; a fault may damage or replace it."""
    delivery = Delivery(request, False, fault)
    if not await delivery.apply_fault():
        return document(value)
    if delivery.response.prepared:
        return await delivery.end()
    half = dumps(value)
    return web.Response(body=half[: len(half) // 2], headers={"Content-Type": DOCUMENT})
