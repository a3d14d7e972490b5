"""The running server: port, signals, reloads, and the order in which it stops."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from proxy.background import Background
from proxy.build import build
from proxy.config import Config
from proxy.edge.front import Door, Front, Tell
from proxy.edge.health import Readiness
from proxy.edge.http import HttpServer
from proxy.errors import ConfigError
from proxy.host import Services
from proxy.identity import check_exposure
from proxy.live import Live
from proxy.logs import RequestLog, to_stderr
from proxy.reading import Read, Watch, held

log = logging.getLogger(__name__)

GRACE = 0.5
"""Seconds between the end of readiness and that of the port, for gateways to look."""


@asynccontextmanager
async def services() -> AsyncIterator[Services]:
    """Everything that outlives a reload; closed in the end."""
    async with AsyncExitStack() as opened:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        http = await opened.enter_async_context(
            aiohttp.ClientSession(connector=connector, trust_env=False, cookie_jar=aiohttp.DummyCookieJar())
        )
        background = Background()
        opened.push_async_callback(background.aclose)
        yield Services(http, background, opened=opened)


@dataclass(slots=True)
class Server:
    """One server on one port.  `live` is replaced by a reload; `listen` is not."""

    config: Config
    live: Live[Door]
    services: Services
    readiness: Readiness
    read: Read
    url: str = ""
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the calls under way shall not be waited for."""

    async def alive(self) -> Mapping[str, str]:
        """Upstream -> "" if it answers, else why not."""
        return await self.live.pipeline.value.alive()

    async def reload(self) -> bool:
        """Swap in the file's present contents; a wrong file changes nothing and is told."""
        try:
            config, source = self.read()
            pipeline = await build(config, source, self.services, self.readiness)
        except ConfigError as error:
            for problem in error.problems:
                log.error("%s", problem)
            log.error("the configuration is unchanged")
            return False
        except Exception:  # a plugin's fault must not end reloading
            log.exception("the configuration is unchanged")
            return False
        self.config = config
        self.live.replace(pipeline)
        log.info("the configuration was read again")
        return True


@asynccontextmanager
async def serving(read: Read, *, insecure: bool = False, tell: Tell | None = None) -> AsyncIterator[Server]:
    """A server that answers until the block is left, then drains.  tell: gets a line for every request.

    Raises ConfigError, or OSError if the port is taken.
    """
    config, source = read()
    check_exposure(config, insecure)
    readiness = Readiness()
    async with services() as lent:
        pipeline = await build(config, source, lent, readiness)
        live = Live(pipeline, lent.background)
        server = Server(config, live, lent, readiness, held(read, config, insecure))
        try:
            async with listening(server, tell):
                yield server
        finally:
            await server.live.pipeline.retire()


@asynccontextmanager
async def listening(server: Server, tell: Tell | None) -> AsyncIterator[None]:
    front = Front(server.live, tell, server.readiness, server.services.place.server)
    http = HttpServer(front, lambda: server.live.pipeline.value.max_bytes)
    runner = web.ServerRunner(http, shutdown_timeout=1)
    await runner.setup()
    try:
        listen = server.config.listen
        site = web.TCPSite(runner, listen.host, listen.port, reuse_address=True, backlog=1024)
        await site.start()
        port = runner.addresses[0][1]
        host = f"[{listen.host}]" if ":" in listen.host else listen.host
        server.url = f"http://{host}:{port}"
        yield
        await drained(server, site)
    finally:
        server.readiness.stopping = True
        await runner.cleanup()


async def drained(server: Server, site: web.TCPSite) -> None:
    """Readiness goes first, then the port, and the calls under way may finish within `listen.drain` seconds."""
    server.readiness.stopping = True
    if not server.live.calls:
        return
    log.info("stopping once the calls under way (%s) have finished; a second signal cuts them", server.live.calls)
    idle = asyncio.ensure_future(server.live.idle())
    hurried = asyncio.ensure_future(server.hurry.wait())
    for patience in (min(GRACE, server.config.listen.drain), server.config.listen.drain):
        await asyncio.wait((idle, hurried), timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        await site.stop()
        if idle.done() or hurried.done():
            break
    if not idle.done():
        log.warning("calls that have not finished are cut")
    for waiting in (idle, hurried):
        waiting.cancel()


async def run(read: Read, watch: Watch, insecure: bool, started: Callable[[Server], Awaitable[None]]) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP or a changed file reloads."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    settings = read()[0].log
    tell = RequestLog(settings, to_stderr) if settings.level in ("debug", "info") else None
    async with serving(read, insecure=insecure, tell=tell) as server:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: server.hurry.set() if stop.is_set() else stop.set())
        loop.add_signal_handler(signal.SIGHUP, watch.hangup)
        server.services.background.start(reloading(server, watch), "reloading")
        server.services.background.start(watch.looking(), "watching the configuration")
        await started(server)
        settle_down()
        await stop.wait()
    if tell is not None:
        tell.flush()


def settle_down() -> None:
    """What was made at start lives as long as the process; the collector need not look at it again.

    A request makes some hundred objects that die by reference count, so that looking for cycles after every
    seven hundred, Python's default, finds nothing and costs a tenth of the server's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


async def reloading(server: Server, watch: Watch) -> None:
    while True:
        await watch.next()
        await server.reload()


def port_is_taken(error: OSError, config: Config) -> str:
    why = os.strerror(error.errno) if error.errno else str(error)
    return f"cannot listen on {config.listen.host}:{config.listen.port}: {why}"
