"""Accepts connections and distributes them among the workers in turn.

One process owns the port, so that even a few keep-alive connections are spread evenly, and a connection that waits to
be accepted does not die with a worker.  Each connection is sent as one byte with a file descriptor over a socket pair,
and the worker acknowledges it with one byte.  Until then it stays open here too, so that another worker gets it if the
first one dies.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

log = logging.getLogger(__name__)
TAKEN: Final = b"+"
REFUSED: Final = b"-"
WINDOW: Final = 32
"""Connections that a worker may have unacknowledged before it is sent no more."""
BATCH: Final = 64
"""Connections accepted at once before the event loop's other readers have their turn."""
NOT_HERE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""Errors of an address that this machine does not have, such as the IPv6 one of `localhost` without IPv6."""
SILENCE: Final = 10.0
"""Minimum seconds between two equal warnings."""
PAUSE: Final = 0.5
"""Seconds until the next try if no event indicates that one may succeed."""


class WorkerChannel:
    """The channel to a worker, and the connections that were sent to it but are not yet acknowledged."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.unsure: deque[socket.socket] = deque()

    def offer(self, connection: socket.socket) -> bool:
        """Send a connection to the worker; gives whether that was possible."""
        if len(self.unsure) >= WINDOW:
            return False
        try:
            socket.send_fds(self.channel, [TAKEN], [connection.fileno()])
        except OSError:  # it died, or too many descriptors are in flight: another worker gets the connection
            return False
        self.unsure.append(connection)
        return True


class Acceptor:
    """Owns the listening sockets, and the connections until a worker has acknowledged them."""

    def __init__(self, listening: Sequence[socket.socket]) -> None:
        """listening: non-blocking; the acceptor closes them."""
        self.loop = asyncio.get_running_loop()
        self.listening = list(listening)
        self.workers: list[WorkerChannel] = []
        """The one that got the last connection comes last."""
        self.waiting: deque[socket.socket] = deque()
        self.accepting = False
        self.silent = 0.0
        self.later: asyncio.TimerHandle | None = None

    def join(self, channel: socket.socket) -> None:
        """Send connections to this worker too, until it closes its channel."""
        worker = WorkerChannel(channel)
        self.workers.append(worker)
        self.loop.add_reader(channel, self.answered, worker)
        if self.listening:
            self.resume()
        else:
            self.hang_up(worker)

    def answered(self, worker: WorkerChannel) -> None:
        """Read a worker's acknowledgements; reading nothing means that it has closed the channel or died."""
        try:
            said = worker.channel.recv(WINDOW)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        for answer in said:
            connection = worker.unsure.popleft()
            if answer == TAKEN[0]:
                connection.close()
            else:
                self.waiting.append(connection)
        if not said:
            self.leave(worker)
        self.resume()

    def leave(self, worker: WorkerChannel) -> None:
        self.loop.remove_reader(worker.channel)
        self.workers.remove(worker)
        self.waiting.extendleft(reversed(worker.unsure))
        worker.channel.close()

    def room(self) -> bool:
        return any(len(worker.unsure) < WINDOW for worker in self.workers)

    def deal(self, connection: socket.socket) -> bool:
        """Send it to the next of the workers with the fewest unacknowledged connections; gives whether one got it."""
        for worker in sorted(self.workers, key=lambda worker: len(worker.unsure)):
            if worker.offer(connection):
                self.workers.remove(worker)
                self.workers.append(worker)
                return True
        return False

    def accept(self, listening: socket.socket) -> None:
        for _ in range(BATCH):
            if self.waiting or not self.room():
                self.pause()
                break
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                break
            except OSError as error:  # such as too many open files
                self.complain(error)
                self.pause()
                break
            if not self.deal(connection):
                self.waiting.append(connection)

    def complain(self, error: OSError) -> None:
        if self.loop.time() > self.silent:
            self.silent = self.loop.time() + SILENCE
            log.warning("no connections can be accepted at the moment; they wait: %s", error.strerror)

    def pause(self) -> None:
        """Stop accepting, so that connections wait in the system's queue until a worker has room."""
        if self.accepting:
            self.accepting = False
            for listening in self.listening:
                self.loop.remove_reader(listening)
        if self.later is None:
            self.later = self.loop.call_later(PAUSE, self.resume)

    def resume(self) -> None:
        """Distribute the connections that wait here, then accept again."""
        if self.later is not None:
            self.later.cancel()
            self.later = None
        while self.waiting and self.deal(self.waiting[0]):
            self.waiting.popleft()
        if self.waiting and self.workers:
            self.pause()
        elif not self.accepting and self.room():
            self.accepting = True
            for listening in self.listening:
                self.loop.add_reader(listening, self.accept, listening)

    def close(self) -> None:
        """Close the port; the workers still receive the connections that were accepted, then the end of the channel."""
        self.pause()
        for listening in self.listening:
            listening.close()
        self.listening.clear()
        self.resume()
        for worker in self.workers:
            self.hang_up(worker)

    def hang_up(self, worker: WorkerChannel) -> None:
        """Signal to a worker that it gets no more connections."""
        with suppress(OSError):
            worker.channel.shutdown(socket.SHUT_WR)

    def abandon(self) -> None:
        """Close the connections that still wait, because no worker is left."""
        if self.later is not None:
            self.later.cancel()
        for connection in self.waiting:
            connection.close()
        self.waiting.clear()


async def bound(host: str, port: int, backlog: int) -> list[socket.socket]:
    """Listening sockets on every address of the host.  Raises OSError, also if another process uses the port.

    With port 0, all of them get the same free port.
    """
    found = await asyncio.get_running_loop().getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    opened: list[socket.socket] = []
    absent: OSError | None = None
    for family, address in dict.fromkeys((one[0], one[4]) for one in found):
        try:
            opened.append(listener(family, (address[0], port, *address[2:]), backlog))
        except OSError as error:
            absent = error
            if error.errno not in NOT_HERE:
                break
        else:
            port = opened[0].getsockname()[1]
    if absent and (absent.errno not in NOT_HERE or not opened):
        for one in opened:
            one.close()
        raise absent
    return opened


def listener(family: int, address: tuple[object, ...], backlog: int) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.setblocking(False)
        one.bind(address)
        one.listen(backlog)
    except OSError:
        one.close()
        raise
    return one
