from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.upstreams import http1
from proxy.upstreams.http1 import Connection, ConnectionBroken, Origin, Unreachable

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ROOT = Origin("http://127.0.0.1").head("GET", "/", 0)
FINE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Server:
    """Reads requests and answers each with `serve`.  asked: their first lines."""

    def __init__(self, serve: Serve) -> None:
        self.serve = serve
        self.asked: list[str] = []
        self.heard = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is not None:
            self.tasks.add(task)
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.asked.append(head.decode().splitlines()[0])
                self.heard.set()
                found = re.search(rb"content-length: (\d+)", head.lower())
                await reader.readexactly(int(found[1]) if found else 0)
                await self.serve(reader, writer)
        writer.close()


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[tuple[Origin, Server]]:
    """An origin in front of such a server."""
    inner = Server(serve)
    server = await asyncio.start_server(inner.connected, "127.0.0.1", 0)
    origin = Origin(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/base")
    try:
        yield origin, inner
    finally:
        origin.close()
        server.close()
        for task in inner.tasks:
            task.cancel()
        await asyncio.gather(*inner.tasks, return_exceptions=True)
        await asyncio.sleep(0)


async def until(so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not so():  # noqa: ASYNC110  (nothing tells of a transport's own state)
            await asyncio.sleep(0.001)


def saying(*pieces: bytes, end: bool = False) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if end:
            writer.close()

    return serve


async def whole(connection: Connection) -> bytes:
    parts = []
    try:
        while data := await connection.part():
            parts.append(data)
    finally:
        connection.close()
    return b"".join(parts)


async def test_a_connection_serves_again_once_its_answer_was_read() -> None:
    async with serving(saying(FINE)) as (origin, server):
        first = await origin.send(origin.head("POST", "/api/chat", 2) + b"{}", 1)
        assert (first.status, await whole(first)) == (200, b"hi")
        second = await origin.send(origin.head("GET", "/api/tags", 0), 1)
        assert second is first and await whole(second) == b"hi"
        assert server.asked == ["POST /base/api/chat HTTP/1.1", "GET /base/api/tags HTTP/1.1"]
        assert list(origin.idle) == [first]


async def test_an_answer_that_was_not_read_takes_its_connection_with_it() -> None:
    async with serving(saying(FINE)) as (origin, _):
        first = await origin.send(ROOT, 1)
        first.close()
        assert not origin.idle
        assert await origin.send(ROOT, 1) is not first


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5\r\ndef\r\n\r\n0\r\n\r\n"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, len(CHUNKED) - 1), max_size=6))
def test_however_an_answer_is_cut_it_is_the_same(cuts: list[int]) -> None:
    connection = Connection(Origin("http://127.0.0.1:1"))
    edges = [0, *sorted(set(cuts)), len(CHUNKED)]
    for start, end in pairwise(edges):
        connection.data_received(CHUNKED[start:end])
    assert b"".join(connection.parts) == b"abcdef\r\n" and connection.complete and connection.reusable


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    async with serving(saying(b"HTTP/1.1 200 OK\r\n\r\nall ", b"of it", end=True)) as (origin, _):
        assert await whole(await origin.send(ROOT, 1)) == b"all of it"
        assert not origin.idle


@pytest.mark.parametrize(
    "pieces",
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",),
    ],
)
async def test_a_body_that_ends_too_early_is_broken(pieces: tuple[bytes, ...]) -> None:
    async with serving(saying(*pieces, end=True)) as (origin, _):
        with pytest.raises(ConnectionBroken, match="broke off"):
            await whole(await origin.send(ROOT, 1))


@pytest.mark.parametrize("garbage", [b"SSH-2.0-x\r\n", b"\x00\x01\x02", b"HTTP/1.1 abc\r\n\r\n"])
async def test_what_is_no_http_is_broken(garbage: bytes) -> None:
    async with serving(saying(garbage)) as (origin, _):
        with pytest.raises(ConnectionBroken, match="no HTTP"):
            await origin.send(ROOT, 1)


async def test_a_head_without_end_is_not_read_for_ever() -> None:
    async with serving(saying(b"HTTP/1.1 200 OK\r\n", *[b"X-A: " + b"a" * 9000 + b"\r\n"] * 20)) as (origin, _):
        with pytest.raises(ConnectionBroken):
            await origin.send(ROOT, 1)


async def test_an_interim_answer_is_not_the_answer() -> None:
    async with serving(saying(b"HTTP/1.1 100 Continue\r\n\r\n", FINE)) as (origin, _):
        assert await whole(await origin.send(ROOT, 1)) == b"hi"


async def test_words_after_the_end_cost_the_connection() -> None:
    async with serving(saying(FINE + b"HTTP/1.1 500 Surprise\r\n")) as (origin, _):
        await whole(await origin.send(ROOT, 1))
        assert await whole(await origin.send(ROOT, 1)) == b"hi"


async def test_another_answer_to_the_same_request_is_no_part_of_the_first() -> None:
    other = b"HTTP/1.1 500 Surprise\r\nRetry-After: 9\r\nContent-Length: 3\r\n\r\nbad"
    async with serving(saying(FINE + other)) as (origin, _):
        answer = await origin.send(ROOT, 1)
        assert (await whole(answer), answer.status, answer.retry_after) == (b"hi", 200, None)
        assert not origin.idle


async def test_nobody_waits_behind_a_request_that_was_answered_before_all_of_it_was_sent() -> None:
    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(FINE)
        await asyncio.Event().wait()  # what else is sent is never read

    async with serving(hasty) as (origin, _):
        assert await whole(await origin.send(ROOT + bytes(20_000_000), 1)) == b"hi"
        assert not origin.idle
        assert await whole(await origin.send(ROOT, 1)) == b"hi"


async def test_a_slow_reader_leaves_the_rest_to_the_network() -> None:
    size = 20_000_000
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode()
    async with serving(saying(head, bytes(size))) as (origin, _):
        answer = await origin.send(ROOT, 1)
        await until(lambda: answer.paused)
        assert answer.size < 2_000_000
        assert len(await whole(answer)) == size


async def test_leaving_closes_the_connection() -> None:
    gone = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""
        gone.set()

    async with serving(silent) as (origin, server):
        asking = asyncio.ensure_future(origin.send(origin.head("POST", "/", 2) + b"{}", 1))
        await server.heard.wait()
        asking.cancel()
        async with asyncio.timeout(10):
            await gone.wait()


async def test_idle_connections_are_few_and_not_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "MOST_IDLE", 2)
    async with serving(saying(FINE)) as (origin, _):
        answers = [await origin.send(ROOT, 1) for _ in range(4)]
        for answer in answers:
            await whole(answer)
        assert len(origin.idle) == 2
        monkeypatch.setattr(http1, "IDLE", -1.0)
        assert await origin.send(ROOT, 1) not in answers
        assert not origin.idle


async def test_a_connection_that_the_server_closed_is_not_used_again() -> None:
    async with serving(saying(FINE, end=True)) as (origin, _):
        first = await origin.send(ROOT, 1)
        await whole(first)
        await until(lambda: not origin.idle)
        assert await origin.send(ROOT, 1) is not first


@asynccontextmanager
async def plain() -> AsyncIterator[int]:
    """The port of a server that speaks no TLS."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"this is no TLS\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_what_cannot_be_reached_says_why() -> None:
    with pytest.raises(Unreachable, match="connection refused"):
        await Origin("http://127.0.0.1:9").send(ROOT, 1)
    with pytest.raises(Unreachable, match="name is not known"):
        await Origin("http://no-such-host.invalid").send(ROOT, 5)


@contextmanager
def swallowing(port: int) -> Iterator[None]:
    """At this port 127.0.0.2 answers nothing: so many wait to be accepted that the next one's packets are dropped."""
    with ExitStack() as opened:
        hole = opened.enter_context(socket.socket())
        hole.bind(("127.0.0.2", port))
        hole.listen(0)
        for _ in range(4):
            one = opened.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(("127.0.0.2", port))
        yield


@pytest.mark.parametrize("kind", [asyncio.SelectorEventLoop, uvloop.Loop])
def test_a_name_of_which_the_first_address_answers_nothing_is_reached_at_the_next(kind: Any) -> None:
    class Naming(kind):  # type: ignore[misc]  # either kind of loop, with a name of its own
        async def getaddrinfo(self, name: str, port: int, **more: Any) -> Any:
            if name != "ollama.example":
                return await super().getaddrinfo(name, port, **more)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in ("127.0.0.2", "127.0.0.1")]

    async def reached() -> int:
        async with serving(saying(FINE)) as (origin, _):
            with swallowing(origin.port):
                named = Origin(f"http://ollama.example:{origin.port}")
                connection = await named.send(ROOT, 5)
                connection.fail("was enough")
                return connection.status

    with asyncio.Runner(loop_factory=Naming) as runner:
        assert runner.run(reached()) == 200


async def test_a_server_without_tls_is_told_as_such() -> None:
    async with plain() as port:
        with pytest.raises(Unreachable, match="TLS failed: it speaks plain HTTP; use http://"):
            await Origin(f"https://127.0.0.1:{port}").send(ROOT, 1)


async def test_certificates_are_read_once_however_many_connections_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    read, make = [], ssl.create_default_context

    def counted() -> ssl.SSLContext:
        read.append(make())
        return read[-1]

    monkeypatch.setattr(ssl, "create_default_context", counted)
    async with plain() as port:
        for _ in range(3):
            with pytest.raises(Unreachable):
                await Origin(f"https://127.0.0.1:{port}").send(ROOT, 1)
    assert len(read) <= 1


def test_each_address_of_a_name_may_have_refused() -> None:
    refused = "[Errno 111] Connect call failed ('{}', 9)"
    several = OSError(f"Multiple exceptions: {refused.format('::1')}, {refused.format('127.0.0.1')}")
    assert http1.reason_of(several) == "connection refused"
    assert http1.reason_of(OSError("odd")) == "odd"
