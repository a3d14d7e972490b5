"""Accepts connections, and deals them out to the workers in turn.

One process owns the port, so that every worker gets its equal part even of a few connections that are kept alive, and
a connection that waits to be accepted does not die with a worker.  A connection is a byte with a file descriptor on a
socket pair; the worker answers each with a byte.  Until then it is kept here too, and another worker gets it if the
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
"""Connections that a worker may leave unanswered before others get the next ones."""
BATCH: Final = 64
"""Connections accepted before others of the loop's readers have their turn."""
NOT_HERE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""Such as the IPv6 address of `localhost` on a machine without IPv6."""
SILENCE: Final = 10.0
"""Seconds in which the same complaint is not made again."""
PAUSE: Final = 0.5
"""Seconds until the next try where nothing else tells that one may succeed."""


class Taker:
    """A worker's end of its line, and the connections that it has not yet said to have."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.unsure: deque[socket.socket] = deque()

    def offer(self, connection: socket.socket) -> bool:
        """Whether it was sent."""
        if len(self.unsure) >= WINDOW:
            return False
        try:
            socket.send_fds(self.channel, [TAKEN], [connection.fileno()])
        except OSError:  # it died, or the system keeps no more descriptors on their way: another worker, then
            return False
        self.unsure.append(connection)
        return True


class Dealer:
    def __init__(self, listening: Sequence[socket.socket]) -> None:
        """listening: non-blocking; the dealer closes them."""
        self.loop = asyncio.get_running_loop()
        self.listening = list(listening)
        self.takers: list[Taker] = []
        """The one that was dealt to last comes last."""
        self.waiting: deque[socket.socket] = deque()
        self.accepting = False
        self.silent = 0.0
        self.later: asyncio.TimerHandle | None = None

    def join(self, channel: socket.socket) -> None:
        """From now on this worker takes its turns, until it hangs up."""
        taker = Taker(channel)
        self.takers.append(taker)
        self.loop.add_reader(channel, self.answered, taker)
        if self.listening:
            self.resume()
        else:
            self.hang_up(taker)

    def answered(self, taker: Taker) -> None:
        try:
            said = taker.channel.recv(WINDOW)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        for answer in said:
            connection = taker.unsure.popleft()
            if answer == TAKEN[0]:
                connection.close()
            else:
                self.waiting.append(connection)
        if not said:
            self.leave(taker)
        self.resume()

    def leave(self, taker: Taker) -> None:
        self.loop.remove_reader(taker.channel)
        self.takers.remove(taker)
        self.waiting.extendleft(reversed(taker.unsure))
        taker.channel.close()

    def room(self) -> bool:
        return any(len(taker.unsure) < WINDOW for taker in self.takers)

    def deal(self, connection: socket.socket) -> bool:
        """Whether a worker was sent it: the one whose turn it is among those that owe the fewest answers."""
        for taker in sorted(self.takers, key=lambda taker: len(taker.unsure)):
            if taker.offer(connection):
                self.takers.remove(taker)
                self.takers.append(taker)
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
        """Leave connections to the system's queue until a worker has room."""
        if self.accepting:
            self.accepting = False
            for listening in self.listening:
                self.loop.remove_reader(listening)
        if self.later is None:
            self.later = self.loop.call_later(PAUSE, self.resume)

    def resume(self) -> None:
        """Deal out what waits here, then accept again."""
        if self.later is not None:
            self.later.cancel()
            self.later = None
        while self.waiting and self.deal(self.waiting[0]):
            self.waiting.popleft()
        if self.waiting and self.takers:
            self.pause()
        elif not self.accepting and self.room():
            self.accepting = True
            for listening in self.listening:
                self.loop.add_reader(listening, self.accept, listening)

    def close(self) -> None:
        """Close the port; the workers get what they were sent, then the end of their lines."""
        self.pause()
        for listening in self.listening:
            listening.close()
        self.listening.clear()
        self.resume()
        for taker in self.takers:
            self.hang_up(taker)

    def hang_up(self, taker: Taker) -> None:
        """There will be no more for it."""
        with suppress(OSError):
            taker.channel.shutdown(socket.SHUT_WR)

    def abandon(self) -> None:
        """Nobody is left to take what waits."""
        if self.later is not None:
            self.later.cancel()
        for connection in self.waiting:
            connection.close()
        self.waiting.clear()


async def bound(host: str, port: int, backlog: int) -> list[socket.socket]:
    """Listening sockets on every address of the host, and on no other process's.  Raises OSError.

    With port 0 all of them get the same free one.
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
