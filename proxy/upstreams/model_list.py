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
ABSENCE_BELIEVED = 1.0
"""Seconds of age up to which the list is not refreshed for a name that it lacks."""


class ModelList:
    """path: where the server has the list.  read: parses it."""

    def __init__(
        self,
        client: HostClient,
        background: Background,
        clock: Clock,
        path: str = "/api/tags",
        read: Callable[[bytes], Iterable[ModelInfo]] = ollama_models.read_tags,
    ) -> None:
        self.client = client
        self.path = path
        self.read = read
        self.background = background
        self.clock = clock
        self.known: Mapping[str, ModelInfo] = {}
        self.described: dict[tuple[str, str], ModelInfo] = {}
        self.refreshed_at = float("-inf")
        self.refreshing: asyncio.Task[None] | None = None
        self.failed: UpstreamError | None = None
        """The error of the last refresh, None if it succeeded."""

    @property
    def is_old(self) -> bool:
        return self.clock.monotonic() - self.refreshed_at > FRESH

    async def all(self) -> Mapping[str, ModelInfo]:
        """Every model by its canonical name.  Raises UpstreamError if there is no list that is recent enough."""
        age = self.clock.monotonic() - self.refreshed_at
        if age > FRESH:
            refreshing = self.start_refresh()
            if not self.known or age > 6 * FRESH:
                await self.wait_for(refreshing)
        return self.known

    async def wait_for(self, refreshing: asyncio.Task[None]) -> None:
        """Wait for a refresh; only briefly if the last failed, so that a hanging server does not delay all calls."""
        if self.failed is not None:
            await asyncio.wait([refreshing], timeout=PATIENCE)
            if not refreshing.done():
                raise self.failed.copied()
        try:
            await asyncio.shield(refreshing)
        except ProxyError as error:  # a copy, since all who wait get this error
            raise error.copied() from error

    async def find(self, name: str) -> ModelInfo | None:
        """What is known about a model, including its capabilities; None if the server does not have it."""
        canonical = ollama_models.canonical(name)
        found = (await self.all()).get(canonical)
        if found is None and self.clock.monotonic() - self.refreshed_at > ABSENCE_BELIEVED:
            await self.wait_for(self.start_refresh())  # it may have been pulled just now
            found = self.known.get(canonical)
        if found is not None and found.capabilities is None:
            found = await self.with_capabilities(found)
        return found

    def start_refresh(self) -> asyncio.Task[None]:
        """The running refresh, or a new one; it is shared by all who wait, and goes on if they leave."""
        if self.refreshing is None or self.refreshing.done():
            self.refreshing = self.background.start(self.refresh(), f"listing the models of {self.client.url}")
        return self.refreshing

    async def refresh(self) -> None:
        try:
            models = self.read(await self.client.fetch_soon(self.path))
        except UpstreamError as error:
            self.failed = error
            raise
        except ProxyError as error:  # not an error of the caller who needs the list
            self.failed = UpstreamError(f"{self.client.url}{self.path}: {error}", "server", code=error.code)
            raise self.failed from error
        self.failed = None
        self.known = {ollama_models.canonical(one.name): one for one in models}
        self.described = {
            key: info
            for key, info in self.described.items()
            if key in {(one.name, one.digest) for one in self.known.values()}
        }
        self.refreshed_at = self.clock.monotonic()

    async def with_capabilities(self, info: ModelInfo) -> ModelInfo:
        """The model with its capabilities, which older servers only report for a single model; cached."""
        key = (info.name, info.digest)
        if key not in self.described:
            document = await self.client.fetch_soon("/api/show", {"model": info.name}, info.name)
            self.described[key] = ollama_models.with_show(info, document)
        return self.described[key]
