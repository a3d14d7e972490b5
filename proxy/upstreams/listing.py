"""Which models one server has: asked seldom, known always."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from proxy.background import Background
from proxy.clock import Clock
from proxy.models import ModelInfo
from proxy.upstreams.remote import Remote
from proxy.wire import ollama_models

FRESH = 10.0
"""Seconds after which the list is asked for again, while the old one still serves."""
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

    @property
    def is_old(self) -> bool:
        return self.clock.monotonic() - self.asked > FRESH

    async def all(self) -> Mapping[str, ModelInfo]:
        """Every model by its canonical name.  Raises UpstreamError if none was ever told."""
        age = self.clock.monotonic() - self.asked
        if age > FRESH:
            asking = self.refreshing()
            if not self.known or age > 6 * FRESH:
                await asyncio.shield(asking)
        return self.known

    async def find(self, name: str) -> ModelInfo | None:
        """What is known of a model, capabilities included; None if the server does not have it."""
        canonical = ollama_models.canonical(name)
        found = (await self.all()).get(canonical)
        if found is None and self.clock.monotonic() - self.asked > SETTLED:
            await asyncio.shield(self.refreshing())  # it may have been pulled just now
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
        models = self.read(await self.remote.ask_soon(self.path))
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
