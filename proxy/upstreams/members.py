"""The hosts of a pool, and what they say together."""

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
        """What is kept of it over reloads goes by its settings from now on."""

    async def models(self) -> Mapping[str, ModelInfo]:
        """By canonical name.  Raises UpstreamError if none was ever told."""

    async def find(self, name: str) -> ModelInfo | None: ...

    def known(self, name: str) -> ModelInfo | None:
        """By canonical name, as last told, without asking."""

    def warm(self, name: str) -> bool:
        """Whether a model, by canonical name, is loaded or being loaded, as far as known."""

    def loaded(self) -> Collection[str]:
        """Canonical names of the models that are loaded, as far as known."""

    def window(self, name: str) -> int | None:
        """Tokens of context that a model, by canonical name, was loaded with, as far as known."""

    async def poll(self) -> None:
        """Bring what is known up to date.  Raises UpstreamError."""

    def changed(self) -> None:
        """What is known of its models may not be so any more."""

    async def running(self) -> list[JSON]: ...

    async def show(self, body: Mapping[str, JSON]) -> bytes: ...

    async def version(self) -> str: ...


async def found(members: Sequence[Member], name: str) -> ModelInfo | None:
    """What the first says that knows a model.

    Raises UpstreamError if none could be asked, or if none that is known to have it can.
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
        raise first_failure(told)
    return next((one for one in told if isinstance(one, ModelInfo)), None)


async def models(members: Sequence[Member]) -> Mapping[str, ModelInfo]:
    """Merged; a host that is away takes nothing from what the others have."""
    lists = await asyncio.gather(*(one.models() for one in members), return_exceptions=True)
    answered = [listed for listed in lists if not isinstance(listed, BaseException)]
    if not answered:
        raise first_failure(lists)
    return {name: info for listed in reversed(answered) for name, info in listed.items()}


async def running(members: Sequence[Member]) -> list[JSON]:
    """What any of them has loaded.  Raises UpstreamError only if none answers."""
    lists = await asyncio.gather(*(one.running() for one in members), return_exceptions=True)
    answered = [listed for listed in lists if not isinstance(listed, BaseException)]
    if not answered:
        raise first_failure(lists)
    return [entry for listed in answered for entry in listed]


async def version(members: Sequence[Member]) -> str:
    """Of the first that answers, however long others take.  Raises UpstreamError if none does."""
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


def first_failure(told: Sequence[object]) -> BaseException:
    return next(one for one in told if isinstance(one, BaseException))


def placed(error: ProxyError, info: ModelInfo, upstream: str) -> ProxyError:
    """A failure that says where it happened."""
    error.facts.setdefault("model", info.name)
    error.facts.setdefault("upstream", upstream)
    return error


def told(reply: Reply, info: ModelInfo, upstream: str) -> Reply:
    """The reply with what is to be known of where it comes from."""
    facts = {"model": info.name, "upstream": upstream, "digest": info.digest[:10]}
    return Reply(reply.events, {**facts, **reply.facts} if reply.facts else facts, reply.closers)
