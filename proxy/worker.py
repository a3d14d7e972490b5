"""One of several processes that serve: it gets its connections and orders from a supervisor."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import suppress
from typing import cast

from aiohttp import web

from proxy import config as configuration
from proxy import logs, registry
from proxy.acceptor import BATCH, PAUSE, REFUSED, TAKEN
from proxy.background import Background
from proxy.config import Config
from proxy.config_file import with_demo
from proxy.errors import ConfigError
from proxy.server import Server, request_log, serving, settle_down
from proxy.worker_messages import (
    BEAT,
    LONGEST,
    ORDERS,
    Failed,
    Heartbeat,
    HostStates,
    Ready,
    Reload,
    Reloaded,
    Report,
    RunningCalls,
    Start,
    Stop,
    StopNow,
    encode,
    messages_of,
)
from proxy.yamlfile import Source

log = logging.getLogger(__name__)
LEFT_TO_THE_SUPERVISOR = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that terminals and service managers send to every process of a server; a worker ignores them."""


class ConnectionReceiver:
    """Receives the connections that the supervisor distributes."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.channel.setblocking(False)
        self.loop = asyncio.get_running_loop()
        self.ended = asyncio.Event()
        self.opening = Background(most=1_000_000)

    def open(self, http: web.Server) -> None:
        self.http = http
        self.loop.add_reader(self.channel, self.arrived)

    def arrived(self) -> None:
        """Receive connections until none is waiting; the end of the channel means that there will be no more."""
        for _ in range(BATCH):
            try:
                said, found, _, _ = socket.recv_fds(self.channel, 1, 1)
            except BlockingIOError:
                return
            except OSError:
                said = b""
            if not (said and found):
                break
            self.answer(TAKEN)
            self.opening.start(self.take(socket.socket(fileno=found[0])), "opening a connection")
        else:
            return
        if said:
            self.refuse()
        else:
            self.end()

    def answer(self, answer: bytes) -> None:
        with suppress(OSError):  # the supervisor was killed
            self.channel.send(answer)

    def refuse(self) -> None:
        """Decline a connection because too many files are open here, and pause.  Another worker may take it."""
        self.answer(REFUSED)
        self.loop.remove_reader(self.channel)
        self.loop.call_later(PAUSE, lambda: self.loop.add_reader(self.channel, self.arrived))

    async def take(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio does this only on some systems
            await self.loop.connect_accepted_socket(self.http, connection)
        except OSError:  # the client has left
            connection.close()

    def end(self) -> None:
        self.loop.remove_reader(self.channel)
        self.ended.set()

    async def close(self) -> None:
        """Wait until the supervisor has sent its last connection and all of them are open."""
        await self.ended.wait()
        if self.opening.tasks:
            await asyncio.wait(self.opening.tasks)
        self.channel.close()


class Worker:
    """A process that serves and obeys its supervisor's orders; the source of its connections."""

    def __init__(
        self, start: Start, orders: asyncio.StreamReader, reports: asyncio.StreamWriter, receiver: ConnectionReceiver
    ) -> None:
        self.start = start
        self.text = start.text
        self.orders = orders
        self.reports = reports
        self.receiver = receiver
        self.stop = asyncio.Event()

    def send(self, report: Report) -> None:
        self.reports.write(encode(report))

    def read(self) -> tuple[Config, Source]:
        config, source = configuration.read(self.start.name, self.text, registry.problems_of, os.environ)
        config = config.model_copy(update={"listen": self.start.listen, "log": self.start.log})
        return with_demo(config) if self.start.demo else config, source

    async def open(self, server: Server, runner: web.ServerRunner) -> str:
        self.receiver.open(cast(web.Server, runner.server))  # not None, because the runner is set up by now
        return self.start.url

    async def close(self, server: Server) -> None:
        """Report the number of running calls.  The supervisor closes the port once all workers have done this."""
        self.send(RunningCalls(count=server.live.calls))
        server.services.background.start(self.report_idle(server), "waiting for the last call")
        await self.receiver.close()

    async def report_host_states(self, server: Server) -> None:
        self.send(HostStates(upstreams={name: dict(hosts) for name, hosts in (await server.hosts()).items()}))
        await server.warn()

    async def send_heartbeats(self) -> None:
        while not self.stop.is_set():
            self.send(Heartbeat())
            await asyncio.sleep(BEAT)

    async def report_idle(self, server: Server) -> None:
        await server.live.wait_until_idle()
        self.send(RunningCalls(count=0))

    async def run(self) -> None:
        tell = request_log(self.start.log, self.start.worker_info)
        async with serving(
            self.read, insecure=self.start.insecure, tell=tell, connections=self, worker_info=self.start.worker_info
        ) as server:
            background = server.services.background
            background.start(self.obey(server), "obeying")
            self.send(Ready())
            background.start(self.send_heartbeats(), "telling that it is well")
            background.start(self.report_host_states(server), "asking the upstreams")
            settle_down()
            await self.stop.wait()
        if tell is not None:
            tell.flush()

    async def obey(self, server: Server) -> None:
        async for order in messages_of(self.orders, ORDERS):
            match order:
                case Reload():
                    server.services.background.start(self.renew(server, order.text), "reloading")
                case Stop():
                    self.stop.set()
                case StopNow():
                    server.hurry.set()
        self.stop.set()  # the supervisor was killed

    async def renew(self, server: Server, text: str) -> None:
        """Apply a new configuration and report the outcome to the supervisor."""
        before, self.text = self.text, text
        try:
            await server.renew()
        except ConfigError as error:
            self.text = before
            self.send(Reloaded(problems=tuple(error.problems)))
        except Exception as error:  # a plugin's fault must not end reloading
            self.text = before
            log.exception("the configuration is unchanged")
            self.send(Reloaded(problems=(repr(error),)))
        else:
            self.send(Reloaded())


async def run(control: int, channel: int) -> int:
    """Serve until told to stop.  control, channel: file descriptors.  Gives the exit status."""
    for number in (control, channel):
        os.set_inheritable(number, False)
    receiver = ConnectionReceiver(socket.socket(fileno=channel))
    orders, reports = await asyncio.open_unix_connection(sock=socket.socket(fileno=control), limit=LONGEST)
    start = await anext(messages_of(orders, ORDERS), None)
    if not isinstance(start, Start):
        return 1
    logs.set_up(start.log)
    try:
        await Worker(start, orders, reports, receiver).run()
    except ConfigError as error:
        reports.write(encode(Failed(problems=tuple(error.problems))))
        return 1
    finally:
        reports.close()
        with suppress(ConnectionError):
            await reports.wait_closed()
    return 0


def leave_signals() -> None:
    for number in LEFT_TO_THE_SUPERVISOR:
        signal.signal(number, signal.SIG_IGN)
