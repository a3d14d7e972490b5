"""What a plugin is given: the Host, with the Services of the process and access to the pipeline."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar

import aiohttp
from aiohttp import web

from proxy.announcements import CallEnded, Cost
from proxy.availability import Availability as Availability
from proxy.background import Background as Background
from proxy.background import PeriodicTasks as PeriodicTasks
from proxy.background import interruptible_sleep as interruptible_sleep
from proxy.background import shielded as shielded
from proxy.caller_data import CallerData, ItemFinder
from proxy.clock import Clock as Clock
from proxy.errors import ConfigError
from proxy.file_access import FileAccess
from proxy.imports import Imports, NoImports
from proxy.models import ModelInfo
from proxy.prices import PriceBook
from proxy.readiness import Readiness
from proxy.request_reader import Part as Part
from proxy.request_reader import RequestReader as RequestReader
from proxy.stores.counters import Counters, Shared
from proxy.stores.counters.memory import InMemory
from proxy.stores.keyvalue import KeyValue
from proxy.stores.registry import Stores, UnknownStore
from proxy.stores.vectors import Vectors
from proxy.types import JSON, Call, Caller, Handler
from proxy.wire.ids import new_id

if TYPE_CHECKING:  # SQLAlchemy is imported only if there is a database
    from proxy.sql.database import Database

log = logging.getLogger(__name__)
DATABASE: Final = "database"
"""The name in `Services.state` of the process's only database, which is opened when first needed."""
State = TypeVar("State")
Happening = TypeVar("Happening")


class Models(Protocol):
    """The models of all upstreams."""

    def check(self, call: Call) -> None:
        """Raises Denied if the caller's key may not use the model.  Call it before you answer without an upstream."""

    async def info(self, name: str, patterns: tuple[str, ...] | None = None) -> ModelInfo | None:
        """The model behind a name or an alias; None if no upstream lists it, or if these patterns do not allow it."""

    async def stamp(self, name: str) -> str | None:
        """A text that changes whenever the same question may get another answer; for cache keys.  It is made of the
        upstream, the model's name and digest, and the operator's pinned options.  None if no upstream lists it."""

    def named(self, name: str) -> str:
        """The normalised name of the model behind a name or an alias, whether or not any upstream lists it."""

    async def window(self, name: str) -> int | None:
        """The context window, in tokens, of the model behind a name or an alias; None if it is unknown.

        It is what the operator pinned, else what a host that has loaded the model reports, else what the model was
        trained for, which is also the maximum.  Ollama may load the model with less.
        """

    def upstreams(self) -> Collection[str]:
        """Their names."""

    def provider(self, upstream: str) -> str:
        """Whose API an upstream speaks, `ollama` or `openai`.  upstream: its name, or that of one of its hosts; any
        other, such as "" for a call that reached none, means the first upstream."""

    def real(self, name: str) -> str:
        """The name that an alias stands for; any other name is returned unchanged."""

    async def all(self, patterns: tuple[str, ...] | None = None) -> list[ModelInfo]:
        """Every model that callers may use and that these patterns allow, aliases included."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """Which of the server's processes this one is.

    server: an id that all of them share.  folder: a directory that they share while the server runs; "" if there is
    only one process.
    """

    server: str = field(default_factory=lambda: new_id(""))
    index: int = 0
    count: int = 1
    folder: str = ""

    def share(self, whole: int) -> int:
        """This process's share of a limit for the whole server; the shares of all processes add up to `whole`."""
        return whole // self.count + (self.index < whole % self.count)


@dataclass(frozen=True, slots=True)
class Services:
    """What is opened once per process, shared by all pipelines, and survives reloads."""

    http: aiohttp.ClientSession
    background: Background
    clock: Clock = field(default_factory=Clock)
    worker_info: WorkerInfo = field(default_factory=WorkerInfo)
    readiness: Readiness = field(default_factory=Readiness)
    opened: AsyncExitStack = field(default_factory=AsyncExitStack)
    state: dict[str, Any] = field(default_factory=dict)

    def process_state(self, name: str, make: Callable[[], State]) -> State:
        """State that survives reloads: what is already there under this name, else the result of `make()`."""
        if name not in self.state:
            self.state[name] = make()
        found: State = self.state[name]
        return found


class EventBus:
    """Delivers events between features that do not know each other; lives as long as its pipeline."""

    def __init__(self) -> None:
        self.listeners: dict[type, list[Callable[[Any], None]]] = {}
        self.recorded_facts: set[str] = set()
        """Names of facts that are stored as tags in the records of calls."""

    def on(self, kind: type[Happening], listener: Callable[[Happening], None]) -> None:
        self.listeners.setdefault(kind, []).append(listener)

    def announce(self, event: object) -> None:
        for listener in self.listeners.get(type(event), ()):
            try:
                listener(event)
            except Exception:  # a faulty listener must not break the call or other listeners
                whose = f"{getattr(listener, '__module__', '')}.{getattr(listener, '__qualname__', '')}"
                log.exception("a listener for %s failed: %s", type(event).__name__, whose)


Price: TypeAlias = Callable[[CallEnded], Cost | None]


def unpriced(ended: CallEnded) -> Cost | None:
    """The default of `Host.price`: there are no prices."""
    return None


def no_database() -> Database:
    raise LookupError("this pipeline has no database")


def nobody_admitted(call: Call, caller: Caller) -> None:
    raise LookupError("this pipeline admits nobody")


Answerer = Callable[[web.BaseRequest, Call], Awaitable[web.StreamResponse]]
ChatCallMaker = Callable[[web.BaseRequest, Mapping[str, JSON]], Awaitable[Call]]
Frames = Callable[[Callable[[str], None]], AsyncGenerator[bytes, None]]
"""Makes server-sent events; is given a function that shows the client what they wait for."""
Streamer = Callable[[web.BaseRequest, Frames], Awaitable[web.StreamResponse]]


def no_edge(*_: object) -> Any:
    raise LookupError("this pipeline has no edge")


@dataclass(frozen=True, slots=True)
class Host:
    """The services, and access to the pipeline that the plugin is part of.

    send: sends a call of the plugin's own, usually with the route `internal`, a chain that clients cannot reach.
    answer: writes the answer to a call as the edge does, as a stream if the call streams.
    models: the models of all upstreams.
    requests: reads requests to the plugin's own endpoints.
    """

    services: Services
    send: Handler
    answer: Answerer
    models: Models
    requests: RequestReader
    stores: Stores
    bus: EventBus = field(default_factory=EventBus)
    price: Price = unpriced
    """Computes what a call cost."""
    prices: PriceBook = field(default_factory=PriceBook)
    """The prices that `price` uses; a feature that stores prices puts them there."""
    open_database: Callable[[], Database] = no_database
    workers: int = 1
    """Number of worker processes."""
    caller_data: list[CallerData] = field(default_factory=list)
    """Callers' data that features keep; see `register_caller_data`."""
    item_finders: list[ItemFinder] = field(default_factory=list)
    """Find stored items that calls refer to; complete once all plugins are built."""
    adopting: list[Callable[[], None]] = field(default_factory=list)
    """Functions to call once this configuration is certain to be used; see `once_adopted`."""
    admit: Callable[[Call, Caller], None] = nobody_admitted
    """Raises Denied if the caller's key may not use the call's chain or model; to be called before `send`."""
    files: FileAccess = field(default_factory=FileAccess)
    """Access to callers' files, if a feature keeps them; complete once all plugins are built."""
    imports: Imports = field(default_factory=NoImports)
    """Brings new models to upstreams."""
    chat: ChatCallMaker = no_edge
    """Makes a Call for the chain `chat` of a body, read as `POST /v1/chat/completions` reads it.  Check it with `admit`
    before you send it.  Raises BadCall and Denied."""
    stream: Streamer = no_edge
    """Writes an endpoint's own events as the edge writes an answer's: it stops for a client that does not read, and a
    failure before the first event has its own HTTP status."""
    clock: Clock = field(init=False)
    background: Background = field(init=False)
    announce: Callable[[object], None] = field(init=False)
    """Delivers an event to all listeners for its type."""

    def __post_init__(self) -> None:
        # Attributes rather than properties, because every call reads them several times.
        object.__setattr__(self, "clock", self.services.clock)
        object.__setattr__(self, "background", self.services.background)
        object.__setattr__(self, "announce", self.bus.announce)

    @property
    def database(self) -> Database:
        """The database.  If a plugin declares `tables` (a Feature), they exist when the plugin is entered."""
        return self.open_database()

    @property
    def http(self) -> aiohttp.ClientSession:
        return self.services.http

    def keyvalue(self, name: str) -> KeyValue:
        """A key-value store under `stores:` in the configuration, or `memory`.  Raises ConfigError."""
        try:
            return self.stores.keyvalue(name)
        except UnknownStore:
            there = ", ".join(self.stores.names(searched=False))
            raise ConfigError(
                [f"no store is called {name!r}; declare it under `stores`, or name one of: {there}"]
            ) from None

    def vectors(self, name: str) -> Vectors:
        """A vector store under `stores:` in the configuration, or `texts`.  Raises ConfigError."""
        try:
            return self.stores.vectors(name)
        except UnknownStore:
            there = ", ".join(self.stores.names(searched=True))
            raise ConfigError(
                [f"no store of texts is called {name!r}; declare it under `stores`, or name one of: {there}"]
            ) from None

    def availability(self) -> dict[str, Availability]:
        """Whether the database and the external stores in use answered this process when last asked, by name."""
        found = self.stores.availability()
        if (opened := self.services.state.get(DATABASE)) is not None:
            found[DATABASE] = opened.availability
        return found

    def counters(self, name: str | None) -> Counters:
        """Counters in a `redis` store under `stores:`, shared by all processes; with None, in this process's memory.

        Raises ConfigError, also for None if there are several workers.
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
        return self.process_state("counters", lambda: InMemory(self.clock))

    def process_state(self, name: str, make: Callable[[], State]) -> State:
        return self.services.process_state(name, make)

    def register_caller_data(self, data: CallerData) -> None:
        """Register callers' data that a plugin keeps, so that `/api/me/data` can show and delete it."""
        self.caller_data.append(data)

    def register_item_finder(self, finder: ItemFinder) -> None:
        """Register how the items that a plugin stores are found, so that calls may refer to them."""
        self.item_finders.append(finder)

    def once_adopted(self, do: Callable[[], None]) -> None:
        """Call `do` when this configuration comes into use.  Until then the older one uses the `process_state`, so
        changes to that must wait."""
        self.adopting.append(do)

    def on(self, kind: type[Happening], listener: Callable[[Happening], None]) -> None:
        self.bus.on(kind, listener)

    def record_fact(self, fact: str) -> None:
        """Store this fact of replies and errors as a tag in the records of calls."""
        self.bus.recorded_facts.add(fact)
