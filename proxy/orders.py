"""What a supervisor and its workers say to each other: JSON objects, a line each, over a socket pair."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Final, Literal, TypeVar

from pydantic import Field, TypeAdapter

from proxy.host import Place
from proxy.settings import Listen, Log, Strict

LONGEST: Final = 64 * 1024 * 1024
"""Bytes of a line at most, and so about those of a configuration."""
BEAT: Final = 5.0
"""Seconds after which a worker says again that it is well."""


class Start(Strict):
    """The first order.  `listen` and `log` are the server's, whatever the text has said since."""

    order: Literal["start"] = "start"
    name: str
    """The configuration file's, for what is said of it."""
    text: str
    """The last that was found right, with `${…}` as it stands in the file."""
    listen: Listen
    log: Log
    demo: bool
    insecure: bool
    place: Place
    url: str


class Reload(Strict):
    """Take this text instead."""

    order: Literal["reload"] = "reload"
    text: str


class Stop(Strict):
    """Say that you are not ready, finish the calls under way, and end."""

    order: Literal["stop"] = "stop"


class Hurry(Strict):
    """Do not wait for the calls under way."""

    order: Literal["hurry"] = "hurry"


class Failed(Strict):
    """A worker's last word if it cannot start with its configuration."""

    word: Literal["failed"] = "failed"
    problems: tuple[str, ...]


class Ready(Strict):
    """Connections may come."""

    word: Literal["ready"] = "ready"


class Alive(Strict):
    """Upstream -> host -> "" if it answered at the start, else why not."""

    word: Literal["alive"] = "alive"
    upstreams: dict[str, dict[str, str]]


class Well(Strict):
    """Its event loop goes round: said every few seconds by one that is ready."""

    word: Literal["well"] = "well"


class Reloaded(Strict):
    """The new text is in use, unless there were problems."""

    word: Literal["reloaded"] = "reloaded"
    problems: tuple[str, ...] = ()


class Calls(Strict):
    """How many run: told once it is not ready any more, and again when there are none."""

    word: Literal["calls"] = "calls"
    count: int


Order = Start | Reload | Stop | Hurry
Word = Failed | Ready | Alive | Well | Reloaded | Calls
ORDERS: Final[TypeAdapter[Order]] = TypeAdapter(Annotated[Order, Field(discriminator="order")])
WORDS: Final[TypeAdapter[Word]] = TypeAdapter(Annotated[Word, Field(discriminator="word")])
Said = TypeVar("Said")


def line(said: Order | Word) -> bytes:
    return said.model_dump_json().encode() + b"\n"


async def heard(stream: asyncio.StreamReader, kind: TypeAdapter[Said]) -> AsyncIterator[Said]:
    """What the other side says until it ends, however it does."""
    with suppress(ConnectionError):
        async for said in stream:
            yield kind.validate_json(said)
