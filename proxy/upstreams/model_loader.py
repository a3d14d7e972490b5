"""Loads cold models by separate calls, so that a client that leaves does not abort the load for others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from proxy.background import Background
from proxy.clock import Clock
from proxy.errors import ProxyError, UpstreamError
from proxy.models import ModelInfo
from proxy.upstreams.host_client import HostClient
from proxy.wire import ollama_chat, ollama_models
from proxy.wire.ollama_chat import Pins

FRESH = 2.0
"""Seconds after which the list of loaded models is refreshed, while the old one is still used."""
BELIEVED = 30.0
"""Seconds after which the old list is no longer used, since Ollama unloads idle models."""


class ModelLoader:
    def __init__(self, client: HostClient, background: Background, clock: Clock, load_timeout: float) -> None:
        self.client = client
        self.background = background
        self.clock = clock
        self.load_timeout = load_timeout
        """Seconds that a load may take."""
        self.loaded: dict[str, int | None] = {}
        """By canonical name, the context window that a model was loaded with, in tokens; None if unknown."""
        self.refreshed_at = float("-inf")
        self.refreshing: asyncio.Task[None] | None = None
        self.loads: dict[str, asyncio.Task[None]] = {}

    def is_warm(self, model: str) -> bool:
        """Whether a model is loaded, by a list that is still fresh."""
        return ollama_models.canonical(model) in self.loaded and self.clock.monotonic() - self.refreshed_at <= FRESH

    async def ensure_loaded(self, info: ModelInfo, pins: Pins, progress: Callable[[str], None]) -> None:
        """Wait until the model is loaded.  Raises the error with which loading failed."""
        name = ollama_models.canonical(info.name)
        age = self.clock.monotonic() - self.refreshed_at
        if name in self.loaded and age <= BELIEVED:
            if age > FRESH:
                self.start_refresh()
            return
        if age > FRESH and name not in self.loads:
            with suppress(ProxyError):  # unknown; loading a loaded model costs next to nothing
                await asyncio.shield(self.start_refresh())
        if name not in self.loaded:
            progress(f"loading {info.name}")
            try:
                await asyncio.shield(self.load(name, info, pins))
            except ProxyError as error:  # a copy, since all who wait get this error
                raise error.copied() from error
            progress("waiting")

    def start_refresh(self) -> asyncio.Task[None]:
        if self.refreshing is None or self.refreshing.done():
            self.refreshing = self.background.start(self.refresh(), f"listing what {self.client.url} has loaded")
        return self.refreshing

    async def refresh(self) -> None:
        """Raises UpstreamError; then no model is known to be loaded."""
        try:
            self.loaded = ollama_models.read_loaded(await self.client.fetch_soon("/api/ps"))
        except ProxyError as error:
            self.loaded = {}
            if isinstance(error, UpstreamError):
                raise
            raise UpstreamError(f"{self.client.url}/api/ps: {error}", "server", code=error.code) from error
        finally:
            self.refreshed_at = self.clock.monotonic()

    def load(self, name: str, info: ModelInfo, pins: Pins) -> asyncio.Task[None]:
        """The running load of a model, or a new one; it is shared by all who wait for it."""
        if name not in self.loads:
            task = self.background.start(self.run_load(name, info, pins), f"loading {info.name}")
            self.loads[name] = task
            task.add_done_callback(lambda _: self.loads.pop(name))
        return self.loads[name]

    async def run_load(self, name: str, info: ModelInfo, pins: Pins) -> None:
        if info.can("embedding") and not info.can("completion"):
            path, body = "/api/embed", ollama_chat.embed_body(info.name, (), None, pins)
        else:
            path, body = "/api/chat", ollama_chat.load_body(info.name, pins)
        try:
            async with asyncio.timeout(self.load_timeout):
                await self.client.fetch(path, body, info.name)
        except TimeoutError:
            message = f"{info.name} was not loaded within {self.load_timeout:g} seconds."
            raise UpstreamError(message, "load") from None
        with suppress(ProxyError):  # the load may have evicted other models
            await asyncio.shield(self.start_refresh())
        self.loaded.setdefault(name)
