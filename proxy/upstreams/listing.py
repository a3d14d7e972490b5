"""The list of one server's models, cached and refreshed in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from proxy.background import Background
from proxy.clock import Clock
from proxy.errors import ProxyError, UpstreamError
from proxy.models import ModelInfo
from proxy.upstreams.host_client import HostClient
from proxy.wire import ollama_models

FRESH = 10.0
"""Seconds after which the list is refreshed, while the old one is still used."""
PATIENCE = 0.5
"""Seconds to wait for a server that did not answer the last time."""
SETTLED = 1.0
"""Seconds of age up to which the list is not refreshed for a name that it lacks."""


class Listing:
    """path: where the server has the list.  read: parses it."""

    def __init__(
        self,
        remote: HostClient,
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
        """The error of the last refresh, None if it succeeded."""

    @property
    def is_old(self) -> bool:
        return self.clock.monotonic() - self.asked > FRESH

    async def all(self) -> Mapping[str, ModelInfo]:
        """Every model by its canonical name.  Raises UpstreamError if there is no list that is recent enough."""
        age = self.clock.monotonic() - self.asked
        if age > FRESH:
            asking = self.refreshing()
            if not self.known or age > 6 * FRESH:
                await self.waited(asking)
        return self.known

    async def waited(self, asking: asyncio.Task[None]) -> None:
        """Wait for a refresh; only briefly if the last failed, so that a hanging server does not delay all calls."""
        if self.failed is not None:
            await asyncio.wait([asking], timeout=PATIENCE)
            if not asking.done():
                raise self.failed.copied()
        try:
            await asyncio.shield(asking)
        except ProxyError as error:  # a copy, since all who wait get this error
            raise error.copied() from error

    async def find(self, name: str) -> ModelInfo | None:
        """What is known about a model, including its capabilities; None if the server does not have it."""
        canonical = ollama_models.canonical(name)
        found = (await self.all()).get(canonical)
        if found is None and self.clock.monotonic() - self.asked > SETTLED:
            await self.waited(self.refreshing())  # it may have been pulled just now
            found = self.known.get(canonical)
        if found is not None and found.capabilities is None:
            found = await self.described(found)
        return found

    def refreshing(self) -> asyncio.Task[None]:
        """The running refresh, or a new one; it is shared by all who wait, and goes on if they leave."""
        if self.asking is None or self.asking.done():
            self.asking = self.background.start(self.refresh(), f"listing the models of {self.remote.url}")
        return self.asking

    async def refresh(self) -> None:
        try:
            models = self.read(await self.remote.fetch_soon(self.path))
        except UpstreamError as error:
            self.failed = error
            raise
        except ProxyError as error:  # not an error of the caller who needs the list
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
        """The model with its capabilities, which older servers only report for a single model; cached."""
        key = (info.name, info.digest)
        if key not in self.shown:
            document = await self.remote.fetch_soon("/api/show", {"model": info.name}, info.name)
            self.shown[key] = ollama_models.with_show(info, document)
        return self.shown[key]
