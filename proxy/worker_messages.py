"""Messages between a supervisor and its workers: JSON objects, one per line, over a socket pair."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Final, Literal, TypeVar

from pydantic import Field, TypeAdapter

from proxy.host import WorkerInfo
from proxy.settings import Listen, Log, Strict

LONGEST: Final = 64 * 1024 * 1024
"""Maximum bytes of a line, and therefore roughly of a configuration."""
BEAT: Final = 5.0
"""Seconds between the heartbeats of a worker."""


class Start(Strict):
    """The first order.  `listen` and `log` are those with which the server started, whatever `text` says."""

    order: Literal["start"] = "start"
    name: str
    """The configuration file's, for messages about it."""
    text: str
    """The last valid configuration, with `${…}` not yet replaced."""
    listen: Listen
    log: Log
    demo: bool
    insecure: bool
    worker_info: WorkerInfo
    url: str


class Reload(Strict):
    """Use this configuration instead."""

    order: Literal["reload"] = "reload"
    text: str


class Stop(Strict):
    """Report that you are not ready, finish the running calls, and exit."""

    order: Literal["stop"] = "stop"


class StopNow(Strict):
    """Do not wait for the running calls."""

    order: Literal["hurry"] = "hurry"


class Failed(Strict):
    """A worker cannot start with its configuration, and exits."""

    word: Literal["failed"] = "failed"
    problems: tuple[str, ...]


class Ready(Strict):
    """The worker can take connections."""

    word: Literal["ready"] = "ready"


class HostStates(Strict):
    """Which hosts answered at the start: upstream -> host -> "" if it did, else why not."""

    word: Literal["alive"] = "alive"
    upstreams: dict[str, dict[str, str]]


class Heartbeat(Strict):
    """The heartbeat that a ready worker sends every BEAT seconds: its event loop is running."""

    word: Literal["well"] = "well"


class Reloaded(Strict):
    """The new configuration is in use, unless there are problems."""

    word: Literal["reloaded"] = "reloaded"
    problems: tuple[str, ...] = ()


class RunningCalls(Strict):
    """How many calls are running: sent once the worker is no longer ready, and again when there are none."""

    word: Literal["calls"] = "calls"
    count: int


Order = Start | Reload | Stop | StopNow
Report = Failed | Ready | HostStates | Heartbeat | Reloaded | RunningCalls
ORDERS: Final[TypeAdapter[Order]] = TypeAdapter(Annotated[Order, Field(discriminator="order")])
REPORTS: Final[TypeAdapter[Report]] = TypeAdapter(Annotated[Report, Field(discriminator="word")])
Received = TypeVar("Received")


def encode(message: Order | Report) -> bytes:
    return message.model_dump_json().encode() + b"\n"


async def messages_of(stream: asyncio.StreamReader, kind: TypeAdapter[Received]) -> AsyncIterator[Received]:
    """The other side's messages, until the connection ends in whatever way."""
    with suppress(ConnectionError):
        async for message in stream:
            yield kind.validate_json(message)
