"""Counts and times of every call, for Prometheus."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, Self

from aiohttp import web

from plugins.metrics.registry import Registry, registry_of
from proxy.announcements import Attempt, CallEnded, FellBack
from proxy.config import Strict
from proxy.errors import ConfigError
from proxy.host import Host, PeriodicTasks
from proxy.meter import metered
from proxy.types import Call, Handler, Reply, Route

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from plugins.metrics.instruments import Instruments

log = logging.getLogger(__name__)
LOOK: Final = 1.0
"""Seconds between two updates of a worker's view of its stores, so that any worker can answer for all."""
SAY: Final = 60.0
"""Seconds between two log lines about calls that are not counted."""


class Metrics:
    """Counts and times every call, and serves the result to Prometheus at `GET /metrics`.

    Put it first in the chain, so that nothing that happens to a call is missed.
    """

    measures = True

    class Settings(Strict):
        who: Literal["public", "user", "admin"] = "admin"
        """Who may read `/metrics`: `public` needs no key, `user` and `admin` a key with such a role."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self.settings = settings
        self.host = host
        self.registry: Registry = host.process_state("metrics registry", lambda: registry_of(host.services.worker_info))
        self.instruments = host.process_state("metrics", self.made)
        self.periodic = PeriodicTasks(host.background)
        self.said = float("-inf")
        host.on(CallEnded, lambda one: self.count(self.instruments.ended, one, host.models.provider(one.upstream)))
        host.on(Attempt, lambda one: self.count(self.instruments.attempted, one))
        host.on(FellBack, lambda one: self.count(self.instruments.fell_back, one))

    async def __aenter__(self) -> Self:
        if self.host.workers > 1:
            self.periodic.every(LOOK, self.look, "metrics of stores")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.periodic.end()

    async def look(self) -> None:
        self.count(self.instruments.stand, self.host.availability())

    def made(self) -> Instruments:
        from plugins.metrics.instruments import Instruments  # not earlier: the registry configures the library first

        try:
            return Instruments(self.registry.own)
        except OSError as error:
            raise ConfigError([f"`metrics` {self.no_room(error)}; TMPDIR may name another"]) from error

    def no_room(self, error: OSError) -> str:
        return f"cannot count in files in {self.host.services.worker_info.folder}: {error.strerror}"

    def count(self, count: Callable[..., None], *given: object) -> None:
        """Update a metric.  Several workers keep theirs in files; if the disk is full, this is logged now and then."""
        try:
            count(*given)
        except OSError as error:
            if (now := self.host.clock.monotonic()) - self.said >= SAY:
                self.said = now
                log.warning("some calls are missing in the metrics, which %s", self.no_room(error))

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        running = self.instruments.running.labels(call.route)
        running.inc()
        try:
            reply = await metered(call, call_next, self.host)
        except BaseException:
            running.dec()
            raise
        return reply.on_close(running.dec)

    def routes(self) -> Iterable[Route]:
        yield Route("GET", "/metrics", self.answer, self.settings.who)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        await self.look()
        written, kind = await asyncio.to_thread(partial(text_of, self.registry.all(), request.headers.get("Accept")))
        return web.Response(body=written, headers={"Content-Type": kind})


def text_of(registry: CollectorRegistry, accepted: str | None) -> tuple[bytes, str]:
    """The metrics in the format that the client prefers, and its content type."""
    from prometheus_client.exposition import choose_encoder

    encode, kind = choose_encoder(accepted or "")
    return encode(registry), kind
