"""The interface of a pool's hosts, and their combined answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Mapping, Sequence
from typing import Protocol

from proxy.errors import ProxyError, UpstreamError
from proxy.models import ModelInfo
from proxy.types import JSON, Call, Reply
from proxy.wire.ollama_models import canonical


class Member(Protocol):
    """One host of a pool."""

    url: str

    def __call__(self, call: Call, info: ModelInfo) -> Awaitable[Reply]: ...

    def open(self) -> None:
        """Apply its settings to the objects that it shares with the previous configuration."""

    async def models(self) -> Mapping[str, ModelInfo]:
        """By canonical name.  Raises UpstreamError if there is no list that is recent enough."""

    async def find(self, name: str) -> ModelInfo | None: ...

    def known(self, name: str) -> ModelInfo | None:
        """A model by its canonical name, from the cached list."""

    def warm(self, name: str) -> bool:
        """Whether a model, by canonical name, is loaded or being loaded, as far as known."""

    def loaded(self) -> Collection[str]:
        """Canonical names of the models that are loaded, as far as known."""

    def window(self, name: str) -> int | None:
        """Tokens of context that a model, by canonical name, was loaded with, as far as known."""

    async def poll(self) -> None:
        """Refresh what is cached, if it is old.  Raises UpstreamError."""

    def mark_outdated(self) -> None:
        """Mark cached lists as outdated, because its models may have changed."""

    async def running(self) -> list[JSON]: ...

    async def show(self, body: Mapping[str, JSON]) -> bytes: ...

    async def version(self) -> str: ...


async def find(members: Sequence[Member], name: str) -> ModelInfo | None:
    """What the first host that has a model reports about it; None if no host has it.

    Raises UpstreamError if no host answers, or none of those that are known to have the model.
    """
    failed: UpstreamError | None = None
    for member in members:
        if member.known(canonical(name)):
            try:
                if info := await member.find(name):
                    return info
            except UpstreamError as error:
                failed = error
    if failed is not None:
        raise failed
    told = await asyncio.gather(*(one.find(name) for one in members), return_exceptions=True)
    if all(isinstance(one, BaseException) for one in told):
        raise first_error(told)
    return next((one for one in told if isinstance(one, ModelInfo)), None)


async def models(members: Sequence[Member]) -> Mapping[str, ModelInfo]:
    """The models of all hosts that have a current list, merged.  Raises UpstreamError if there is none."""
    lists = await asyncio.gather(*(one.models() for one in members), return_exceptions=True)
    answered = [listed for listed in lists if not isinstance(listed, BaseException)]
    if not answered:
        raise first_error(lists)
    return {name: info for listed in reversed(answered) for name, info in listed.items()}


async def running(members: Sequence[Member]) -> list[JSON]:
    """The loaded models of all hosts, as entries of `/api/ps`.  Raises UpstreamError only if none answers."""
    lists = await asyncio.gather(*(one.running() for one in members), return_exceptions=True)
    answered = [listed for listed in lists if not isinstance(listed, BaseException)]
    if not answered:
        raise first_error(lists)
    return [entry for listed in answered for entry in listed]


async def version(members: Sequence[Member]) -> str:
    """The version of the host that answers first.  Raises UpstreamError if none answers."""
    asking = [asyncio.ensure_future(one.version()) for one in members]
    failed: list[ProxyError] = []
    try:
        for answered in asyncio.as_completed(asking):
            try:
                return await answered
            except ProxyError as error:
                failed.append(error)
    finally:
        for one in asking:
            one.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    raise UpstreamError(str(failed[0]), getattr(failed[0], "cause", "server"))


def first_error(told: Sequence[object]) -> BaseException:
    return next(one for one in told if isinstance(one, BaseException))


def add_origin(error: ProxyError, info: ModelInfo, upstream: str) -> ProxyError:
    """The error, with the facts where it happened."""
    error.facts.setdefault("model", info.name)
    error.facts.setdefault("upstream", upstream)
    return error


def with_origin(reply: Reply, info: ModelInfo, upstream: str) -> Reply:
    """The reply, with the facts where it comes from."""
    facts = {"model": info.name, "upstream": upstream, "digest": info.digest[:10]}
    return Reply(reply.events, {**facts, **reply.facts} if reply.facts else facts, reply.closers)
