"""One process that serves: its port, signals, reloads, and orderly shutdown."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import aiohttp
from aiohttp import web

from proxy.background import Background, ends_first
from proxy.build import build, check, migrate
from proxy.config import Config, Log
from proxy.config_file import Read, Watch, for_reload
from proxy.edge.front import Front, FrontConfig, Tell
from proxy.edge.http import HttpServer
from proxy.errors import ConfigError
from proxy.host import Services, WorkerInfo
from proxy.identity import check_exposure
from proxy.live import Live
from proxy.logs import RequestLog, to_stderr
from proxy.port import Port
from proxy.readiness import Readiness
from proxy.yamlfile import Source

log = logging.getLogger(__name__)

GRACE = 0.5
"""Seconds between reporting not ready and closing the port, so that gateways can notice."""

BACKLOG = 1024
"""Connections that the system queues until they are accepted."""

STOPPING = "stopping once the calls under way (%s) have finished; a second signal cuts them"

Hosts: TypeAlias = Mapping[str, Mapping[str, str]]
"""Upstream -> host -> "" if it answers, else why not."""

Renew = Callable[[], Awaitable[None]]
"""Applies the file's present contents.  Raises ConfigError, with nothing changed."""


@asynccontextmanager
async def services(worker_info: WorkerInfo | None = None) -> AsyncIterator[Services]:
    """Everything that survives reloads, closed at the end.  worker_info: of this process, if there are several."""
    async with AsyncExitStack() as opened:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        http = await opened.enter_async_context(
            aiohttp.ClientSession(connector=connector, trust_env=False, cookie_jar=aiohttp.DummyCookieJar())
        )
        background = Background()
        opened.push_async_callback(background.aclose)
        yield Services(http, background, worker_info=worker_info or WorkerInfo(), opened=opened)


@dataclass(slots=True)
class Server:
    """One process that serves.  A reload replaces the pipeline in `live`, but not the address in `config.listen`."""

    config: Config
    live: Live[FrontConfig]
    services: Services
    read: Read
    url: str = ""
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the shutdown should not wait for running calls."""

    @property
    def readiness(self) -> Readiness:
        return self.services.readiness

    def untrusted_headers(self, connection: web.RequestHandler) -> Collection[str]:
        """The headers that are removed from requests on this connection, because its peer is not a trusted gateway."""
        config = self.live.pipeline.value
        if not config.stripped:
            return ()
        peer = connection.peername
        return () if isinstance(peer, tuple) and config.gateways.trusts(peer[0]) else config.stripped

    async def hosts(self) -> Hosts:
        pools = self.live.pipeline.value.upstreams
        told = await asyncio.gather(*(pool.alive() for pool in pools.values()))
        return dict(zip(pools, told, strict=True))

    async def warn(self) -> None:
        """Log what in the configuration does not match the upstreams.  Of several processes, only the first does."""
        if not self.services.worker_info.index:
            for doubt in await self.live.pipeline.value.doubts():
                log.warning("%s", doubt)

    async def look_around(self) -> None:
        """Log problems with the upstreams after a reload, when no banner shows them."""
        if not self.services.worker_info.index:
            for name, hosts in (await self.hosts()).items():
                for why in filter(None, hosts.values()):
                    log.warning("upstream %s does not answer: %s", name, why)
        await self.warn()

    async def renew(self) -> None:
        """Apply the file's present contents.  Raises ConfigError, with nothing changed, if they are wrong."""
        config, source = self.read()
        pipeline = await build(config, source, self.services)
        self.config = config
        self.live.replace(pipeline)
        self.services.background.start(self.look_around(), "asking the upstreams")

    async def reload(self) -> bool:
        return await log_reload(self.renew)

    async def calls_ended(self, patience: float) -> bool:
        """Wait for the end of running calls, up to `patience` seconds or until `hurry`; gives whether they ended."""
        return await ends_first(self.live.wait_until_idle(), self.hurry.wait(), patience)


async def log_reload(renew: Renew) -> bool:
    """Reload and log the outcome; gives whether it succeeded.  A wrong file changes nothing."""
    try:
        await renew()
    except ConfigError as error:
        for problem in error.problems:
            log.error("%s", problem)
        log.error("the configuration is unchanged")
        return False
    except Exception:  # a plugin's fault must not end reloading
        log.exception("the configuration is unchanged")
        return False
    log.info("the configuration was reloaded")
    return True


async def checked_config(read: Read) -> tuple[Config, Source]:
    """The configuration, with everything checked that can be checked without starting.  Raises ConfigError."""
    config, source = read()
    async with services() as lent:
        check(config, source, lent)
    return config, source


async def migrated(read: Read) -> list[str]:
    """Bring the tables in use up to date; gives the names of their features.  Raises ConfigError."""
    config, source = read()
    async with services() as lent:
        return await migrate(config, source, lent)


class ConnectionSource(Protocol):
    """Where a server's connections come from."""

    async def open(self, server: Server, runner: web.ServerRunner) -> str:
        """Accept connections; gives the server's URL.  Raises OSError if the port is taken."""

    async def close(self, server: Server) -> None:
        """Accept no more connections, after gateways had time to notice that the server is not ready."""


class OwnPort:
    """The connections of a single process: its own port."""

    async def open(self, server: Server, runner: web.ServerRunner) -> str:
        listen = server.config.listen
        self.site = Port(runner, listen.host, listen.port, reuse_address=True, backlog=BACKLOG)
        await self.site.start()
        return url_of(listen.host, runner.addresses[0][1])

    async def close(self, server: Server) -> None:
        if calls := server.live.calls:
            log.info(STOPPING, calls)
            await server.calls_ended(min(GRACE, server.config.listen.drain))
        await self.site.stop()


@asynccontextmanager
async def serving(
    read: Read,
    *,
    insecure: bool = False,
    tell: Tell | None = None,
    connections: ConnectionSource | None = None,
    worker_info: WorkerInfo | None = None,
) -> AsyncIterator[Server]:
    """A server that answers until the block is left, then drains.  tell: is called with every finished request.

    connections, worker_info: given if this is one of several processes.
    Raises ConfigError, or OSError if the port is taken.
    """
    config, source = read()
    check_exposure(config, source, insecure)
    async with services(worker_info) as lent:
        pipeline = await build(config, source, lent)
        live = Live(pipeline, lent.background)
        server = Server(config, live, lent, for_reload(read, config, insecure))
        try:
            async with listening(server, tell, connections or OwnPort()):
                yield server
        finally:
            await server.live.pipeline.retire()


@asynccontextmanager
async def listening(server: Server, tell: Tell | None, connections: ConnectionSource) -> AsyncIterator[None]:
    """Accept connections until the block is left, then drain."""
    front = Front(server.live, tell, server.readiness, server.services.worker_info.server)
    http = HttpServer(
        front,
        lambda: server.live.pipeline.value.max_bytes,
        lambda: server.live.pipeline.value.patience,
        server.untrusted_headers,
    )
    runner = web.ServerRunner(http, shutdown_timeout=1)
    await runner.setup()
    try:
        server.url = await connections.open(server, runner)
        yield
        await drain(server, connections, front)
    finally:
        server.readiness.stopping = server.readiness.cut = True
        await runner.cleanup()


async def drain(server: Server, connections: ConnectionSource, front: Front) -> None:
    """Report not ready, close the port, then give running calls `listen.drain` seconds to finish."""
    server.readiness.stopping = True
    await connections.close(server)
    if server.live.calls and not await server.calls_ended(server.config.listen.drain):
        log.warning("calls that have not finished are ended now")
        front.cut()


async def run(read: Read, watch: Watch, insecure: bool, started: Callable[[Server], Awaitable[None]]) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP or a changed file reloads."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    tell = request_log(read()[0].log, WorkerInfo())
    async with serving(read, insecure=insecure, tell=tell) as server:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: server.hurry.set() if stop.is_set() else stop.set())
        loop.add_signal_handler(signal.SIGHUP, watch.hangup)
        server.services.background.start(reloading(server.renew, watch), "reloading")
        server.services.background.start(watch.looking(), "watching the configuration")
        await started(server)
        server.services.background.start(server.warn(), "asking for the models of aliases")
        settle_down()
        await stop.wait()
    if tell is not None:
        tell.flush()


def request_log(settings: Log, worker_info: WorkerInfo) -> RequestLog | None:
    """The log of requests; None if the log level excludes it."""
    also = {"worker": worker_info.index} if worker_info.count > 1 else {}
    return RequestLog(settings, to_stderr, also) if settings.level in ("debug", "info") else None


def settle_down() -> None:
    """Tune the garbage collector.  Objects made at the start live as long as the process, so it can skip them.

    A request makes some hundred objects that are freed by reference counting.  Looking for cycles after every seven
    hundred, Python's default, finds nothing and costs a tenth of the server's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


async def reloading(renew: Renew, watch: Watch) -> None:
    while True:
        await watch.next()
        await log_reload(renew)


def url_of(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def port_is_taken(error: OSError, host: str, port: int) -> str:
    named = isinstance(error, socket.gaierror)  # its numbers are not those of the system
    why = os.strerror(error.errno) if error.errno and not named else error.strerror or str(error)
    way_out = "; choose another port with --port" if error.errno == errno.EADDRINUSE else ""
    return f"cannot listen on {host}:{port}: {why}{way_out}"
