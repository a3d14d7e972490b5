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
from pathlib import Path

import aiohttp
from aiohttp import web

from proxy import config as configuration
from proxy import registry
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
from proxy.yamlfile import Source

log = logging.getLogger(__name__)

LOOK = 1.0
"""Seconds between two looks at the configuration file."""

GRACE = 0.5
"""Seconds between the end of readiness and that of the port, for gateways to look."""

Read = Callable[[], tuple[Config, Source]]


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

    def checked() -> tuple[Config, Source]:
        again, from_where = read()
        if again.listen != config.listen:
            log.warning("`listen` changes with a restart only")
        again = again.model_copy(update={"listen": config.listen})  # who may come in depends on the real address
        check_exposure(again, insecure)
        return again, from_where

    async with services() as lent:
        pipeline = await build(config, source, lent, readiness)
        live = Live(pipeline, lent.background)
        server = Server(config, live, lent, readiness, checked)
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


async def run(read: Read, path: Path, insecure: bool, started: Callable[[Server], Awaitable[None]]) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP or a changed file reloads."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    settings = read()[0].log
    tell = RequestLog(settings, to_stderr) if settings.level in ("debug", "info") else None
    async with serving(read, insecure=insecure, tell=tell) as server:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: server.hurry.set() if stop.is_set() else stop.set())
        again = asyncio.Event()
        loop.add_signal_handler(signal.SIGHUP, again.set)
        server.services.background.start(reloading(server, again), "reloading")
        server.services.background.start(watching(path, again), "watching the configuration")
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


async def reloading(server: Server, again: asyncio.Event) -> None:
    while True:
        await again.wait()
        again.clear()
        await server.reload()


async def watching(path: Path, again: asyncio.Event) -> None:
    """A look at the file's time and size; editors that write a new file in its place are seen too."""
    seen = mark(path)
    while True:
        await asyncio.sleep(LOOK)
        if (now := mark(path)) != seen:
            seen = now
            if now is not None:
                again.set()


def mark(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def port_is_taken(error: OSError, config: Config) -> str:
    why = os.strerror(error.errno) if error.errno else str(error)
    return f"cannot listen on {config.listen.host}:{config.listen.port}: {why}"


def reader(path: Path, host: str | None, port: int | None, demo: bool) -> Read:
    """Reads the file; what the command line says of it wins."""

    def read() -> tuple[Config, Source]:
        config, source = configuration.load(path, registry.problems_of)
        told = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
        config = config.model_copy(update={"listen": config.listen.model_copy(update=told)})
        if demo:
            config = with_demo(config)
        return config, source

    return read


PLACES = {"ollama": None, "openai": None, "key": None, "options": ()}
"""What an upstream has that a simulated one has not."""


def with_demo(config: Config) -> Config:
    """The same configuration with every upstream simulated."""
    upstreams = {
        name: upstream.model_copy(update={**PLACES, "demo": upstream.demo or configuration.Demo()})
        for name, upstream in config.upstreams.items()
    }
    return config.model_copy(update={"upstreams": upstreams})
