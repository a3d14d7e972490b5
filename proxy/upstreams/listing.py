"""Which models one server has: asked seldom, known always."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from proxy.background import Background
from proxy.clock import Clock
from proxy.errors import ProxyError, UpstreamError
from proxy.models import ModelInfo
from proxy.upstreams.remote import Remote
from proxy.wire import ollama_models

FRESH = 10.0
"""Seconds after which the list is asked for again, while the old one still serves."""
PATIENCE = 0.5
"""Seconds that one waits for a server that did not answer the last time."""
SETTLED = 1.0
"""Seconds for which a name that is not on the list is believed not to exist."""


class Listing:
    """path, read: where the list is, and who reads it."""

    def __init__(
        self,
        remote: Remote,
        background: Background,
        clock: Clock,
        path: str = "/api/tags",
        read: Callable[[bytes], Iterable[ModelInfo]] = ollama_models.read_tags,
    ) -> None:
        self.remote = remote
        self.path = path
        self.read = read
        self.background = background
        self.clock = clock
        self.known: Mapping[str, ModelInfo] = {}
        self.shown: dict[tuple[str, str], ModelInfo] = {}
        self.asked = float("-inf")
        self.asking: asyncio.Task[None] | None = None
        self.failed: UpstreamError | None = None
        """Why the last answer did not come."""

    @property
    def is_old(self) -> bool:
        return self.clock.monotonic() - self.asked > FRESH

    async def all(self) -> Mapping[str, ModelInfo]:
        """Every model by its canonical name.  Raises UpstreamError if none was ever told."""
        age = self.clock.monotonic() - self.asked
        if age > FRESH:
            asking = self.refreshing()
            if not self.known or age > 6 * FRESH:
                await self.waited(asking)
        return self.known

    async def waited(self, asking: asyncio.Task[None]) -> None:
        """Not for long where the last answer did not come either: one server that hangs does not hold up all calls."""
        if self.failed is not None:
            await asyncio.wait([asking], timeout=PATIENCE)
            if not asking.done():
                raise self.failed.copied()
        try:
            await asyncio.shield(asking)
        except ProxyError as error:  # which all who wait are given
            raise error.copied() from error

    async def find(self, name: str) -> ModelInfo | None:
        """What is known of a model, capabilities included; None if the server does not have it."""
        canonical = ollama_models.canonical(name)
        found = (await self.all()).get(canonical)
        if found is None and self.clock.monotonic() - self.asked > SETTLED:
            await self.waited(self.refreshing())  # it may have been pulled just now
            found = self.known.get(canonical)
        if found is not None and found.capabilities is None:
            found = await self.described(found)
        return found

    def refreshing(self) -> asyncio.Task[None]:
        """One question at a time, whoever waits for it, and not undone by who leaves."""
        if self.asking is None or self.asking.done():
            self.asking = self.background.start(self.refresh(), f"listing the models of {self.remote.url}")
        return self.asking

    async def refresh(self) -> None:
        try:
            models = self.read(await self.remote.ask_soon(self.path))
        except UpstreamError as error:
            self.failed = error
            raise
        except ProxyError as error:  # no fault of whoever asks here for a model
            self.failed = UpstreamError(f"{self.remote.url}{self.path}: {error}", "server", code=error.code)
            raise self.failed from error
        self.failed = None
        self.known = {ollama_models.canonical(one.name): one for one in models}
        self.shown = {
            key: info
            for key, info in self.shown.items()
            if key in {(one.name, one.digest) for one in self.known.values()}
        }
        self.asked = self.clock.monotonic()

    async def described(self, info: ModelInfo) -> ModelInfo:
        """Older servers tell capabilities only when asked for one model."""
        key = (info.name, info.digest)
        if key not in self.shown:
            document = await self.remote.ask_soon("/api/show", {"model": info.name}, info.name)
            self.shown[key] = ollama_models.with_show(info, document)
        return self.shown[key]
