"""One incoming request, and the record of it for tests."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from .faults import Fault, take_fault
from .go_format import loads
from .refusals import Refused

if TYPE_CHECKING:
    from .simulator import Simulator


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that was received, whether or not it was answered."""

    method: str
    path: str
    body: Any
    """Parsed; None if there was none or it was not JSON."""
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Call:
    simulator: "Simulator"
    request: web.Request
    raw: bytes

    def body(self) -> Any:
        return loads(self.raw)

    def fault(self, *, generates: bool = True) -> Fault | None:
        return take_fault(self.simulator.faults, self.request.path, generates)

    def seen(self) -> Seen:
        try:
            body = loads(self.raw) if self.raw else None
        except Refused:
            body = None
        return Seen(self.request.method, self.request.path, body, self.request.headers)


class GenerationCounter:
    """Keeps the simulator's counters for one generation."""

    def __init__(self, simulator: "Simulator") -> None:
        self.simulator = simulator
        self.finished = False

    @contextmanager
    def generating(self) -> Iterator[None]:
        self.simulator.started += 1
        self.simulator.running += 1
        self.simulator.note()
        try:
            yield
        finally:
            self.simulator.running -= 1
            self.simulator.note()

    def finish(self) -> None:
        self.finished = True
        self.simulator.finished += 1


@contextmanager
def counting(simulator: "Simulator", generates: bool) -> Iterator[GenerationCounter]:
    """Counts a client that leaves: while it is queued, during the load, or during the answer."""
    counter = GenerationCounter(simulator)
    try:
        yield counter
    except (asyncio.CancelledError, ConnectionResetError):
        if generates and not counter.finished:
            simulator.note_leaving()
        raise
