"""Finds the upstream of each model, and applies the operator's rules: the innermost handler of every chain."""

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
from proxy.upstreams.access import Patterns, permits, unknown
from proxy.wire.ollama_chat import Pins
from proxy.wire.ollama_models import canonical
from proxy.wire.openai_items import check_outputs

ANY_MODEL = "*"
UPSTREAM = "upstream"
"""The tag of a call with which a plugin chooses its upstream."""
PROBE_TIMEOUT = 2.0
"""Seconds within which an upstream must answer a probe."""
RECENT = 1.0
"""Seconds for which the upstream of a model is cached."""
MOST_LOCATIONS = 1000
"""Maximum number of cached upstreams of models."""
SUGGESTION_TIMEOUT = 0.5
"""Seconds that finding a similar name for an unknown model may take."""
NO_VERSION = "0.0.0"
"""The version if no upstream reports one; an Ollama that was built without a version has it, too."""
Location: TypeAlias = tuple[str, ModelInfo]
"""The name of an upstream, and what it reports about a model."""
LOAD_TIME = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "draft_num_predict")
"""Options that Ollama applies when it loads a model."""


class Server(Protocol):
    """One upstream.  Its replies have the facts `model`, `upstream` and `digest`."""

    def __call__(self, call: Call, info: ModelInfo) -> Awaitable[Reply]: ...

    async def models(self) -> Mapping[str, ModelInfo]: ...

    async def find(self, name: str) -> ModelInfo | None: ...

    def window(self, name: str) -> int | None: ...

    async def running(self) -> list[JSON]: ...

    async def show(self, body: Mapping[str, JSON]) -> bytes: ...

    async def version(self) -> str: ...


class ModelRules:
    """The `models:` of the configuration, by canonical name."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.models = {canonical(name): model for name, model in models.items() if name != ANY_MODEL}
        self.others = models.get(ANY_MODEL, Model())
        self.names = [name for name in models if name != ANY_MODEL]
        self.pins = lru_cache(4096)(self.pinned)

    def of(self, name: str) -> Model:
        return self.models.get(canonical(name), self.others)

    def pinned(self, name: str) -> Pins:
        model = self.of(name)
        options = {key: value for key in LOAD_TIME if (value := getattr(model, key)) is not None}
        return Pins(options, model.shift, model.keep_alive)


class Catalogue:
    """All upstreams' models under the operator's rules.  Plugins see it as `host.models`."""

    def __init__(self, rules: ModelRules, servers: Mapping[str, Server], settings: Mapping[str, Upstream]) -> None:
        self.rules = rules
        self.settings = settings
        self.servers = servers
        self.stamped = lru_cache(MOST_LOCATIONS)(self._stamp)
        self.locations: dict[str, tuple[float, Location]] = {}

    async def __call__(self, call: Call) -> Reply:
        """Sends the call to the upstream of its model.

        Raises NotFound if the model does not exist or is not allowed, Denied if the caller's key does not permit it.
        """
        self.check(call)
        if call.tags and (wanted := call.tags.get(UPSTREAM)):
            upstream, info = await self.locate(call.model, wanted, call.models)
        else:
            upstream, info = self.cached(call.model) or await self.locate_cached(call.model, call.models)
        server, ask = self.servers[upstream], call.ask
        if isinstance(ask, Chat) and info.can("vision") is False:
            check_images(call.model, ask)
        if call.receipt is not None and call.receipt.head["object"] == "response" and isinstance(ask, Chat):
            check_outputs(call.receipt.input, ask.messages)  # not earlier, since plugins add previous messages
            call.receipt.right()
        if choices.wants_several(ask):
            return await choices.fan_out(call, lambda one: server(one, info))
        return await server(call, info)

    def check(self, call: Call) -> None:
        """Raises Denied for a model that the caller's key does not permit."""
        if call.models is not None and not self.permits(call.models, call.model):
            message = f"This API key does not allow the model '{call.model[:200]}'."
            raise Denied(message, param="model", code="model_not_allowed")

    def permits(self, patterns: Patterns, name: str) -> bool:
        """Whether a pattern matches the name, or the model that the name is an alias of."""
        if patterns is None or permits(patterns, name):
            return True
        alias = self.rules.of(name).alias
        return alias is not None and permits(patterns, alias)

    def cached(self, name: str) -> Location | None:
        """The cached upstream of a model, if still valid; most calls are for a model that was used a moment ago."""
        found = self.locations.get(name)
        return found[1] if found is not None and found[0] > time.monotonic() else None

    async def locate_cached(self, name: str, patterns: Patterns = None) -> Location:
        location = await self.locate(name, None, patterns)
        if len(self.locations) >= MOST_LOCATIONS:
            self.locations.clear()
        self.locations[name] = (time.monotonic() + RECENT, location)
        return location

    async def locate(self, name: str, at: str | None = None, patterns: Patterns = None) -> Location:
        """The upstream of a model, and what it reports about the model.  Raises NotFound, UpstreamError.

        at: the upstream that a plugin chose.  patterns: of the models that may be suggested to the caller.
        """
        asked = self.rules.of(name)
        if not asked.allowed:
            raise unknown(name)
        real = asked.alias or name
        wanted = at or self.rules.of(real).upstream
        for upstream in [wanted] if wanted else self.servers:
            if info := await self.find_in(upstream, real, alone=wanted is not None):
                return upstream, info
        raise unknown(name, asked.alias, "" if asked.alias or wanted else await self.similar_name(name, patterns))

    async def similar_name(self, name: str, patterns: Patterns) -> str:
        """The most similar name that the caller may use; "" if there is none, or finding it takes too long."""
        with suppress(UpstreamError, TimeoutError):
            async with asyncio.timeout(SUGGESTION_TIMEOUT):
                names = [info.name.removesuffix(":latest") for info in await self.all(patterns)]
                return next(iter(get_close_matches(name[:100], names, 1, cutoff=0.7)), "")
        return ""

    def named(self, name: str) -> str:
        return canonical(self.rules.of(name).alias or name)

    def upstreams(self) -> Collection[str]:
        return self.servers.keys()

    def provider(self, upstream: str) -> str:
        name = upstream if upstream in self.settings else upstream.partition("/")[0]
        return (self.settings.get(name) or next(iter(self.settings.values()))).speaks

    async def window(self, name: str) -> int | None:
        pinned = self.rules.of(self.real(name)).num_ctx
        try:
            upstream, info = self.cached(name) or await self.locate_cached(name)
        except (NotFound, UpstreamError):
            return pinned
        known = pinned or self.servers[upstream].window(canonical(info.name)) or info.context
        return min(known, info.context) if known and info.context else known

    def real(self, name: str) -> str:
        return self.rules.of(name).alias or name

    async def find_in(self, upstream: str, name: str, alone: bool) -> ModelInfo | None:
        """alone: no other upstream will be asked, so an error is raised."""
        try:
            return await self.servers[upstream].find(name)
        except UpstreamError:
            if alone or len(self.servers) == 1:
                raise
            return None  # another upstream may have it

    async def info(self, name: str, patterns: Patterns = None) -> ModelInfo | None:
        try:
            return (await self.locate(name))[1] if self.permits(patterns, name) else None
        except NotFound:
            return None

    async def stamp(self, name: str) -> str | None:
        try:
            upstream, info = self.cached(name) or await self.locate_cached(name)
        except NotFound:
            return None
        return self.stamped(upstream, info.name, info.digest)

    def _stamp(self, upstream: str, model: str, digest: str) -> str:
        pins = self.rules.pins(model)
        fixed = orjson.dumps([pins.options, pins.shift], option=orjson.OPT_SORT_KEYS).decode()
        return f"{upstream} {canonical(model)} {digest} {fixed}{self.settings[upstream].answering}"

    async def all(self, patterns: Patterns = None) -> list[ModelInfo]:
        """All models that may be used and match the patterns; None matches all.

        Raises UpstreamError only if no upstream answers.
        """
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
        allowed = [info for name, info in there.items() if self.rules.of(name).allowed]
        return [one for one in (*allowed, *self.aliases(there)) if self.permits(patterns, one.name)]

    def aliases(self, there: Mapping[str, ModelInfo]) -> list[ModelInfo]:
        """Allowed aliases whose model exists, even if using that model by its own name is not allowed."""
        listed = []
        for name in self.rules.names:
            model = self.rules.of(name)
            if model.alias and model.allowed and (behind := there.get(canonical(model.alias))):
                listed.append(replace(behind, name=name))
        return listed

    async def broken_aliases(self) -> list[str]:
        """A message for each alias whose model no upstream lists; none unless every upstream answers."""
        aliases = {name: alias for name in self.rules.names if (alias := self.rules.of(name).alias)}
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
        """The loaded models of all upstreams, as entries of `/api/ps`, that may be used and match the patterns.

        An upstream that does not answer counts as having none.
        """
        lists = await asyncio.gather(*(s.running() for s in self.servers.values()), return_exceptions=True)
        entries = [entry for listed in lists if not isinstance(listed, BaseException) for entry in listed]
        named = [(str(one.get("name", "")), one) for one in entries]
        return [one for name, one in named if self.rules.of(name).allowed and self.permits(patterns, name)]

    async def version(self) -> str:
        """The version of the first configured Ollama that answers.  Raises UpstreamError if no upstream answers."""
        told = await asyncio.gather(*(probed(s.version()) for s in self.servers.values()), return_exceptions=True)
        answered = [one for one in told if isinstance(one, str)]
        if not answered:
            raise UpstreamError("No upstream answers.", "connect")
        return next(filter(None, answered), NO_VERSION)

    async def alive(self) -> dict[str, str]:
        """Name of each upstream -> "" if it answers, otherwise the error."""
        names = list(self.servers)
        results = await asyncio.gather(*(probed(self.servers[n].version()) for n in names), return_exceptions=True)
        return {name: "" if isinstance(told, str) else str(told) for name, told in zip(names, results, strict=True)}


async def probed(asking: Awaitable[str]) -> str:
    """Raises UpstreamError if a probe takes longer than PROBE_TIMEOUT."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            return await asking
    except TimeoutError:
        raise UpstreamError(f"no answer within {PROBE_TIMEOUT:g} seconds", "timeout") from None


def check_images(asked: str, chat: Chat) -> None:
    """Raises BadCall if there are images.  Ollama would notice only after loading the model, or not at all."""
    at = pictured_at(chat.messages)
    if at is not None:
        raise BadCall(f"The model '{asked}' does not support images.", param=at, code="model_not_capable")
