"""Where models live, and who may ask for them: the innermost handler of every chain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache
from typing import Protocol, TypeAlias

import orjson

from proxy.asks import pictured_at
from proxy.config import Model, Upstream
from proxy.errors import BadCall, Denied, NotFound, UpstreamError
from proxy.models import ModelInfo
from proxy.types import JSON, Call, Chat, Reply
from proxy.upstreams import choices
from proxy.upstreams.access import Patterns, opens, unknown
from proxy.wire.ollama_chat import Pins
from proxy.wire.ollama_models import canonical
from proxy.wire.openai_items import check_outputs

EVERY = "*"
UPSTREAM = "upstream"
"""The tag of a call with which a plugin chooses where it is asked."""
PROBED = 2.0
"""Seconds that an upstream may take to show that it is there."""
RECENT = 1.0
"""Seconds for which it is not asked again where a model lives."""
MOST_HOMES = 1000
SOON = 0.5
"""Seconds that advice on a wrong name may take."""
UNKNOWN = "0.0.0"
"""What an Ollama says that was built without a version, and a server that is none."""
Home: TypeAlias = tuple[str, ModelInfo]
"""The name of an upstream, and what it says of a model."""
LOAD_TIME = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "draft_num_predict")


class Server(Protocol):
    """One upstream; its replies tell `model`, `upstream` and `digest`."""

    def __call__(self, call: Call, info: ModelInfo) -> Awaitable[Reply]: ...

    async def models(self) -> Mapping[str, ModelInfo]: ...

    async def find(self, name: str) -> ModelInfo | None: ...

    def window(self, name: str) -> int | None: ...

    async def running(self) -> list[JSON]: ...

    async def show(self, body: Mapping[str, JSON]) -> bytes: ...

    async def version(self) -> str: ...


class Settled:
    """The `models:` of the configuration, by canonical name."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.models = {canonical(name): model for name, model in models.items() if name != EVERY}
        self.others = models.get(EVERY, Model())
        self.names = [name for name in models if name != EVERY]
        self.pins = lru_cache(4096)(self.pinned)

    def of(self, name: str) -> Model:
        return self.models.get(canonical(name), self.others)

    def pinned(self, name: str) -> Pins:
        model = self.of(name)
        options = {key: value for key in LOAD_TIME if (value := getattr(model, key)) is not None}
        return Pins(options, model.shift, model.keep_alive)


class Catalogue:
    """Every upstream's models under the operator's rules; also what plugins see as `host.models`."""

    def __init__(self, settled: Settled, servers: Mapping[str, Server], settings: Mapping[str, Upstream]) -> None:
        self.settled = settled
        self.settings = settings
        self.servers = servers
        self.stamped = lru_cache(MOST_HOMES)(self._stamp)
        self.homes: dict[str, tuple[float, Home]] = {}

    async def __call__(self, call: Call) -> Reply:
        """Sends the call to the upstream of its model.

        Raises NotFound for what is not there or not allowed, and Denied for what the caller's key does not open.
        """
        self.check(call)
        if call.tags and (wanted := call.tags.get(UPSTREAM)):
            upstream, info = await self.home(call.model, wanted, call.models)
        else:
            upstream, info = self.recent(call.model) or await self.remembered(call.model, call.models)
        server, ask = self.servers[upstream], call.ask
        if isinstance(ask, Chat) and info.can("vision") is False:
            check_images(call.model, ask)
        if call.receipt is not None and call.receipt.head["object"] == "response" and isinstance(ask, Chat):
            check_outputs(call.receipt.input, ask.messages)  # no earlier: plugins add what was said before
            call.receipt.right()
        if choices.several(ask):
            return await choices.fanned_out(call, lambda one: server(one, info))
        return await server(call, info)

    def check(self, call: Call) -> None:
        """Raises Denied for a model that the caller's key does not open."""
        if call.models is not None and not self.opens(call.models, call.model):
            message = f"This API key does not allow the model '{call.model[:200]}'."
            raise Denied(message, param="model", code="model_not_allowed")

    def opens(self, patterns: Patterns, name: str) -> bool:
        """Whether a pattern fits the name that is asked for, or the model whose alias it is."""
        if patterns is None or opens(patterns, name):
            return True
        alias = self.settled.of(name).alias
        return alias is not None and opens(patterns, alias)

    def recent(self, name: str) -> Home | None:
        """Where a model was a moment ago; nearly every call asks for one that another just asked for."""
        found = self.homes.get(name)
        return found[1] if found is not None and found[0] > time.monotonic() else None

    async def remembered(self, name: str, patterns: Patterns = None) -> Home:
        home = await self.home(name, None, patterns)
        if len(self.homes) >= MOST_HOMES:
            self.homes.clear()
        self.homes[name] = (time.monotonic() + RECENT, home)
        return home

    async def home(self, name: str, at: str | None = None, patterns: Patterns = None) -> Home:
        """The upstream of a model, and what it says of it.

        at: the one that a plugin chose.  patterns: of the models that the caller may be told of.
        """
        asked = self.settled.of(name)
        if not asked.allowed:
            raise unknown(name)
        real = asked.alias or name
        settled = self.settled.of(real)
        wanted = at or settled.upstream
        for upstream in [wanted] if wanted else self.servers:
            if info := await self.found(upstream, real, alone=wanted is not None):
                return upstream, info
        raise unknown(name, asked.alias, "" if asked.alias or wanted else await self.nearest(name, patterns))

    async def nearest(self, name: str, patterns: Patterns) -> str:
        """The name most like this one that callers may ask for; "" if there is none, or if it is not known soon."""
        with suppress(UpstreamError, TimeoutError):
            async with asyncio.timeout(SOON):
                names = [info.name.removesuffix(":latest") for info in await self.all(patterns)]
                return next(iter(get_close_matches(name[:100], names, 1, cutoff=0.7)), "")
        return ""

    def named(self, name: str) -> str:
        return canonical(self.settled.of(name).alias or name)

    def upstreams(self) -> Collection[str]:
        return self.servers.keys()

    def provider(self, upstream: str) -> str:
        name = upstream if upstream in self.settings else upstream.partition("/")[0]
        return (self.settings.get(name) or next(iter(self.settings.values()))).speaks

    async def window(self, name: str) -> int | None:
        pinned = self.settled.of(self.real(name)).num_ctx
        try:
            upstream, info = self.recent(name) or await self.remembered(name)
        except (NotFound, UpstreamError):
            return pinned
        known = pinned or self.servers[upstream].window(canonical(info.name)) or info.context
        return min(known, info.context) if known and info.context else known

    def real(self, name: str) -> str:
        return self.settled.of(name).alias or name

    async def found(self, upstream: str, name: str, alone: bool) -> ModelInfo | None:
        """alone: no other upstream may be asked."""
        try:
            return await self.servers[upstream].find(name)
        except UpstreamError:
            if alone or len(self.servers) == 1:
                raise
            return None  # another upstream may have it

    async def info(self, name: str, patterns: Patterns = None) -> ModelInfo | None:
        try:
            return (await self.home(name))[1] if self.opens(patterns, name) else None
        except NotFound:
            return None

    async def stamp(self, name: str) -> str | None:
        try:
            upstream, info = self.recent(name) or await self.remembered(name)
        except NotFound:
            return None
        return self.stamped(upstream, info.name, info.digest)

    def _stamp(self, upstream: str, model: str, digest: str) -> str:
        pins = self.settled.pins(model)
        fixed = orjson.dumps([pins.options, pins.shift], option=orjson.OPT_SORT_KEYS).decode()
        return f"{upstream} {canonical(model)} {digest} {fixed}{self.settings[upstream].answering}"

    async def all(self, patterns: Patterns = None) -> list[ModelInfo]:
        """Those that these patterns open, None being every one.  Raises UpstreamError only if no upstream at all
        answers."""
        lists = await asyncio.gather(*(s.models() for s in self.servers.values()), return_exceptions=True)
        there: dict[str, ModelInfo] = {}
        for listed in lists:
            if isinstance(listed, UpstreamError):
                continue
            if isinstance(listed, BaseException):
                raise listed
            for name, info in listed.items():
                there.setdefault(name, info)
        if not there and (failed := next((one for one in lists if isinstance(one, UpstreamError)), None)):
            raise failed
        allowed = [info for name, info in there.items() if self.settled.of(name).allowed]
        return [one for one in (*allowed, *self.aliases(there)) if self.opens(patterns, one.name)]

    def aliases(self, there: Mapping[str, ModelInfo]) -> list[ModelInfo]:
        """Those whose model is there, even if that one itself is hidden."""
        listed = []
        for name in self.settled.names:
            model = self.settled.of(name)
            if model.alias and model.allowed and (behind := there.get(canonical(model.alias))):
                listed.append(replace(behind, name=name))
        return listed

    async def lost_aliases(self) -> list[str]:
        """Those whose model no upstream lists, in words; none where not every upstream tells its list."""
        aliases = {name: alias for name in self.settled.names if (alias := self.settled.of(name).alias)}
        if not aliases or any((await self.alive()).values()):
            return []
        lists = await asyncio.gather(*(s.models() for s in self.servers.values()), return_exceptions=True)
        there: set[str] = set()
        for listed in lists:
            if isinstance(listed, BaseException):
                return []
            there.update(listed)
        lost = [(name, alias) for name, alias in aliases.items() if canonical(alias) not in there]
        return [f"models.{name}: no upstream lists {alias!r}, whose alias it is" for name, alias in lost]

    async def running(self, patterns: Patterns = None) -> list[JSON]:
        """What is loaded anywhere, of the models that may be asked for and that these patterns open.

        An upstream that is away has nothing loaded.
        """
        lists = await asyncio.gather(*(s.running() for s in self.servers.values()), return_exceptions=True)
        entries = [entry for listed in lists if not isinstance(listed, BaseException) for entry in listed]
        named = [(str(one.get("name", "")), one) for one in entries]
        return [one for name, one in named if self.settled.of(name).allowed and self.opens(patterns, name)]

    async def version(self) -> str:
        """Of the first Ollama that answers.  Raises UpstreamError if no upstream does."""
        told = await asyncio.gather(*(in_time(s.version()) for s in self.servers.values()), return_exceptions=True)
        answered = [one for one in told if isinstance(one, str)]
        if not answered:
            raise UpstreamError("No upstream answers.", "connect")
        return next(filter(None, answered), UNKNOWN)

    async def alive(self) -> dict[str, str]:
        """Upstream -> "" if it answers, else why not."""
        names = list(self.servers)
        results = await asyncio.gather(*(in_time(self.servers[n].version()) for n in names), return_exceptions=True)
        return {name: "" if isinstance(told, str) else str(told) for name, told in zip(names, results, strict=True)}


async def in_time(asking: Awaitable[str]) -> str:
    """Raises UpstreamError for what takes longer than a probe waits."""
    try:
        async with asyncio.timeout(PROBED):
            return await asking
    except TimeoutError:
        raise UpstreamError(f"no answer within {PROBED:g} seconds", "timeout") from None


def check_images(asked: str, chat: Chat) -> None:
    """Ollama would only notice when the model is loaded, or not at all."""
    at = pictured_at(chat.messages)
    if at is not None:
        raise BadCall(f"The model '{asked}' does not support images.", param=at, code="model_not_capable")
