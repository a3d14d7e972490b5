"""What the pipeline lends to its plugins."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import aiohttp
from aiohttp import web
from pydantic import BaseModel

from proxy.background import Background
from proxy.clock import Clock as Clock
from proxy.errors import ConfigError
from proxy.models import ModelInfo
from proxy.stores.keyvalue import KeyValue
from proxy.stores.shelf import Shelf, Unknown
from proxy.types import Call, Caller, Handler, Reply
from proxy.wire.ids import new_id

log = logging.getLogger(__name__)
Kept = TypeVar("Kept")
Happening = TypeVar("Happening")


class Models(Protocol):
    """What the upstreams know of their models."""

    async def info(self, name: str) -> ModelInfo | None:
        """The model behind a name or an alias; None if no upstream lists it."""

    async def stamp(self, name: str) -> str | None:
        """Differs when the same question may be answered otherwise: by the upstream, the model's name and digest, and
        what the operator pinned.  None if no upstream lists it."""

    def upstreams(self) -> Collection[str]:
        """Their names."""

    async def all(self) -> list[ModelInfo]:
        """Every model that callers may ask for, aliases included."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which of a server's processes this one is.  server: an id that all of them share."""

    server: str = field(default_factory=lambda: new_id(""))
    index: int = 0
    count: int = 1

    def share(self, whole: int) -> int:
        """This process's part of what the whole server may have; the parts add up to it."""
        return whole // self.count + (self.index < whole % self.count)


@dataclass(frozen=True, slots=True)
class Services:
    """Opened once, shared by every pipeline that is built; outlives reloads."""

    http: aiohttp.ClientSession
    background: Background
    clock: Clock = field(default_factory=Clock)
    place: Place = field(default_factory=Place)
    opened: AsyncExitStack = field(default_factory=AsyncExitStack)
    state: dict[str, Any] = field(default_factory=dict)

    def kept(self, name: str, make: Callable[[], Kept]) -> Kept:
        """State that survives a reload: what an earlier pipeline kept under this name, else `make()`."""
        if name not in self.state:
            self.state[name] = make()
        kept: Kept = self.state[name]
        return kept


class Bus:
    """What one feature tells any other without knowing it; lives as long as its pipeline."""

    def __init__(self) -> None:
        self.listeners: dict[type, list[Callable[[Any], None]]] = {}

    def on(self, kind: type[Happening], listener: Callable[[Happening], None]) -> None:
        self.listeners.setdefault(kind, []).append(listener)

    def announce(self, event: object) -> None:
        for listener in self.listeners.get(type(event), ()):
            listener(event)


Form = TypeVar("Form", bound=BaseModel)


class Desk(Protocol):
    """What the edge tells of a request to a plugin's own endpoint."""

    def caller(self, request: web.BaseRequest) -> Caller: ...

    async def form(self, request: web.BaseRequest, kind: type[Form]) -> Form:
        """The JSON body as a model; none at all is an empty one.  Raises BadCall naming a field."""


Answerer = Callable[[web.BaseRequest, Call], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Host:
    """The services, and ways into the pipeline that the plugin is part of.

    send: a call of the plugin's own; with route `internal` no plugin meets its own call.
    answer: writes the answer to a call as the edge does, streaming where the call streams.
    models: what the upstreams know of a model.
    desk: who asks at an endpoint of the plugin's own, and what for.
    """

    services: Services
    send: Handler
    answer: Answerer
    models: Models
    desk: Desk
    shelf: Shelf
    bus: Bus = field(default_factory=Bus)

    @property
    def http(self) -> aiohttp.ClientSession:
        return self.services.http

    @property
    def clock(self) -> Clock:
        return self.services.clock

    @property
    def background(self) -> Background:
        return self.services.background

    def keyvalue(self, name: str) -> KeyValue:
        """A store under `stores:` in the configuration, or `memory`.  Raises ConfigError."""
        try:
            return self.shelf.keyvalue(name)
        except Unknown:
            raise ConfigError([f"no store is called {name!r}; there are {', '.join(self.shelf.kinds)}"]) from None

    def kept(self, name: str, make: Callable[[], Kept]) -> Kept:
        return self.services.kept(name, make)

    def on(self, kind: type[Happening], listener: Callable[[Happening], None]) -> None:
        self.bus.on(kind, listener)

    @property
    def announce(self) -> Callable[[object], None]:
        """Tells an event to all who listen to its kind."""
        return self.bus.announce


async def nowhere(call: Call) -> Reply:
    """A `send` for plugins that are built only to be checked."""
    raise LookupError("this pipeline is not running")
