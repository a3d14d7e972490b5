"""What the pipeline lends to its plugins."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar

import aiohttp
from aiohttp import web

from proxy.background import Background as Background
from proxy.background import Chores as Chores
from proxy.background import rest as rest
from proxy.background import surely as surely
from proxy.clock import Clock as Clock
from proxy.desk import Desk as Desk
from proxy.desk import Part as Part
from proxy.errors import ConfigError
from proxy.filing import Cabinet
from proxy.holdings import Finding, Holding
from proxy.imports import Imports, NoImports
from proxy.models import ModelInfo
from proxy.news import CallEnded, Cost
from proxy.prices import Book
from proxy.readiness import Readiness
from proxy.seen import Seen as Seen
from proxy.stores.counters import Counters, Shared
from proxy.stores.counters.memory import InMemory
from proxy.stores.keyvalue import KeyValue
from proxy.stores.shelf import Shelf, Unknown
from proxy.stores.vectors import Vectors
from proxy.types import JSON, Call, Caller, Handler, Reply
from proxy.wire.ids import new_id

if TYPE_CHECKING:  # SQLAlchemy is imported for those only who keep records
    from proxy.sql.database import Database

log = logging.getLogger(__name__)
DATABASE: Final = "database"
"""What the only one of a process is kept as, once something needs it."""
Kept = TypeVar("Kept")
Happening = TypeVar("Happening")


class Models(Protocol):
    """What the upstreams know of their models."""

    def check(self, call: Call) -> None:
        """Raises Denied for a model that the caller's key does not open.  Whoever answers by itself asks this first."""

    async def info(self, name: str, patterns: tuple[str, ...] | None = None) -> ModelInfo | None:
        """The model behind a name or an alias; None if no upstream lists it, or if these patterns do not open it."""

    async def stamp(self, name: str) -> str | None:
        """Differs when the same question may be answered otherwise: by the upstream, the model's name and digest, and
        what the operator pinned.  None if no upstream lists it."""

    def named(self, name: str) -> str:
        """The model that a name or an alias stands for, whether or not any upstream lists it; one form of its name."""

    async def window(self, name: str) -> int | None:
        """Tokens that a prompt and its answer share, for the model behind a name or an alias, as far as is known.

        As the operator pinned them, else as the host says that has it loaded, else what it was trained for, and never
        more than that; Ollama may load it with less.  None if nothing is known.
        """

    def upstreams(self) -> Collection[str]:
        """Their names."""

    def provider(self, upstream: str) -> str:
        """Whose API an upstream speaks, `ollama` or `openai`.  upstream: the name of it, or of one of its hosts; of any
        other, as "" of what reached none, it is the first one's."""

    def real(self, name: str) -> str:
        """The name that an alias stands for; of any other name itself."""

    async def all(self, patterns: tuple[str, ...] | None = None) -> list[ModelInfo]:
        """Every model that callers may ask for and that these patterns open, aliases included."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which of a server's processes this one is.

    server: an id that all of them share.  folder: one that they share, as long as the server runs; "" where it has one
    process only.
    """

    server: str = field(default_factory=lambda: new_id(""))
    index: int = 0
    count: int = 1
    folder: str = ""

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
    readiness: Readiness = field(default_factory=Readiness)
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
        self.recorded: set[str] = set()
        """Names of facts that are kept as tags in the records of calls."""

    def on(self, kind: type[Happening], listener: Callable[[Happening], None]) -> None:
        self.listeners.setdefault(kind, []).append(listener)

    def announce(self, event: object) -> None:
        for listener in self.listeners.get(type(event), ()):
            try:
                listener(event)
            except Exception:  # one's fault is neither the call's nor the other listeners'
                log.exception("a listener for %s failed", type(event).__name__)


Price: TypeAlias = Callable[[CallEnded], Cost | None]


def unpriced(ended: CallEnded) -> Cost | None:
    """Where nothing has a price."""
    return None


def no_database() -> Database:
    raise LookupError("this pipeline has no database")


def nobody_admitted(call: Call, caller: Caller) -> None:
    raise LookupError("this pipeline admits nobody")


Answerer = Callable[[web.BaseRequest, Call], Awaitable[web.StreamResponse]]
Chatted = Callable[[web.BaseRequest, Mapping[str, JSON]], Awaitable[Call]]
Frames = Callable[[Callable[[str], None]], AsyncGenerator[bytes, None]]
"""Server-sent events, made with a way to say what they wait for."""
Streamer = Callable[[web.BaseRequest, Frames], Awaitable[web.StreamResponse]]


def no_edge(*_: object) -> Any:
    raise LookupError("this pipeline has no edge")


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
    price: Price = unpriced
    """What a call cost."""
    prices: Book = field(default_factory=Book)
    """Where `price` looks; a feature that keeps prices puts them there."""
    open_database: Callable[[], Database] = no_database
    workers: int = 1
    """Processes that answer."""
    holdings: list[Holding] = field(default_factory=list)
    """What features keep of callers' own."""
    finders: list[Finding] = field(default_factory=list)
    """Who finds what is referred to: known once all plugins are built."""
    adopting: list[Callable[[], None]] = field(default_factory=list)
    """What is done once nothing can refuse this configuration any more."""
    admit: Callable[[Call, Caller], None] = nobody_admitted
    """Before a call of a caller's own is sent: raises Denied where their key does not open its chain or model."""
    cabinet: Cabinet = field(default_factory=Cabinet)
    """Callers' files, where a feature keeps them: known once all plugins are built."""
    imports: Imports = field(default_factory=NoImports)
    """New models on their way to upstreams."""
    chat: Chatted = no_edge
    """What a body asks of the chain `chat`, read as `POST /v1/chat/completions` reads it; before it is sent, `admit` is
    asked.  Raises BadCall and Denied."""
    stream: Streamer = no_edge
    """Writes events of an endpoint's own as the edge writes an answer's: none to a client that does not read, and the
    first failure with its own status."""
    clock: Clock = field(init=False)
    background: Background = field(init=False)
    announce: Callable[[object], None] = field(init=False)
    """Tells an event to all who listen to its kind."""

    def __post_init__(self) -> None:
        # Asked for several times in every call, so that they are no properties.
        object.__setattr__(self, "clock", self.services.clock)
        object.__setattr__(self, "background", self.services.background)
        object.__setattr__(self, "announce", self.bus.announce)

    @property
    def database(self) -> Database:
        """Where records are kept.  A plugin that declares `tables`, a Feature, finds them there once it is entered."""
        return self.open_database()

    @property
    def http(self) -> aiohttp.ClientSession:
        return self.services.http

    def keyvalue(self, name: str) -> KeyValue:
        """A store under `stores:` in the configuration, or `memory`.  Raises ConfigError."""
        try:
            return self.shelf.keyvalue(name)
        except Unknown:
            there = ", ".join(self.shelf.names(searched=False))
            raise ConfigError(
                [f"no store is called {name!r}; declare it under `stores`, or name one of: {there}"]
            ) from None

    def vectors(self, name: str) -> Vectors:
        """A store of texts under `stores:` in the configuration, or `texts`.  Raises ConfigError."""
        try:
            return self.shelf.vectors(name)
        except Unknown:
            there = ", ".join(self.shelf.names(searched=True))
            raise ConfigError(
                [f"no store of texts is called {name!r}; declare it under `stores`, or name one of: {there}"]
            ) from None

    def seen(self) -> dict[str, Seen]:
        """How the database and the stores in use that may be away were last seen by this process."""
        found = self.shelf.seen()
        if (opened := self.services.state.get(DATABASE)) is not None:
            found[DATABASE] = opened.seen
        return found

    def counters(self, name: str | None) -> Counters:
        """Those in a `redis` store under `stores:`, which all processes share; None is those of the only process.

        Raises ConfigError.
        """
        if name is not None:
            store = self.keyvalue(name)
            if not isinstance(store, Shared):
                raise ConfigError([f"the store {name!r} cannot keep counts; use one of the kind `redis`"])
            return store.counters()
        if self.workers > 1:
            raise ConfigError(
                [f"{self.workers} workers would each count separately; set a `store` of the kind `redis`"]
            )
        return self.kept("counters", lambda: InMemory(self.clock))

    def kept(self, name: str, make: Callable[[], Kept]) -> Kept:
        return self.services.kept(name, make)

    def holds(self, holding: Holding) -> None:
        """A plugin says what it keeps of callers' own, so that `/api/me/data` tells and deletes it."""
        self.holdings.append(holding)

    def finds(self, finder: Finding) -> None:
        """A plugin says how the items that it keeps are found, so that calls may refer to them."""
        self.finders.append(finder)

    def once_adopted(self, do: Callable[[], None]) -> None:
        """What is `kept` may serve an older configuration: it is set as this one says only when this one serves."""
        self.adopting.append(do)

    def on(self, kind: type[Happening], listener: Callable[[Happening], None]) -> None:
        self.bus.on(kind, listener)

    def record(self, fact: str) -> None:
        """This fact of replies and errors is kept as a tag in the records of calls, which are made further out."""
        self.bus.recorded.add(fact)


async def nowhere(call: Call) -> Reply:
    """A `send` for plugins that are built only to be checked."""
    raise LookupError("this pipeline is not running")
