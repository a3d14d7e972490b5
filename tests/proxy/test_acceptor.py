"""Connections are distributed evenly, and none is lost between two processes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from proxy.acceptor import REFUSED, TAKEN, WINDOW, Acceptor, bound


class Worker:
    """A worker's end of its channel, which confirms connections when the test says so."""

    def __init__(self, acceptor: Acceptor) -> None:
        theirs, self.channel = socket.socketpair()
        theirs.setblocking(False)
        self.channel.setblocking(False)
        self.got: list[socket.socket] = []
        acceptor.join(theirs)

    def take(self) -> int:
        """Receive the connections sent since; gives their number."""
        before = len(self.got)
        with suppress(BlockingIOError):
            while numbers := socket.recv_fds(self.channel, 1, 1)[1]:
                self.got.append(socket.socket(fileno=numbers[0]))
        return len(self.got) - before

    def die(self) -> None:
        self.channel.close()
        for connection in self.got:
            connection.close()


class Port:
    def __init__(self, acceptor: Acceptor, address: tuple[str, int]) -> None:
        self.acceptor = acceptor
        self.address = address
        self.clients: list[socket.socket] = []

    async def connect(self, count: int) -> None:
        for _ in range(count):
            client = socket.socket()
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, self.address)
            self.clients.append(client)
        await run_loop()


async def run_loop() -> None:
    for _ in range(5):
        await asyncio.sleep(0.001)


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    listening = await bound("127.0.0.1", 0, 100)
    port = Port(Acceptor(listening), listening[0].getsockname())
    yield port
    port.acceptor.close()
    port.acceptor.abandon()
    for taker in list(port.acceptor.workers):
        port.acceptor.leave(taker)
    port.acceptor.abandon()
    for client in port.clients:
        client.close()


async def test_connections_go_to_the_workers_in_turn(port: Port) -> None:
    workers = [Worker(port.acceptor) for _ in range(3)]
    await port.connect(9)
    assert [worker.take() for worker in workers] == [3, 3, 3]
    for worker in workers:
        worker.die()


async def test_connections_that_a_dead_worker_had_not_taken_go_to_another(port: Port) -> None:
    first, second = Worker(port.acceptor), Worker(port.acceptor)
    await port.connect(6)
    assert first.take() == 3
    first.channel.send(TAKEN)
    await run_loop()
    first.die()
    await run_loop()
    assert second.take() == 3 + 2
    second.die()


async def test_connections_that_a_worker_refuses_go_to_another(port: Port) -> None:
    first, second = Worker(port.acceptor), Worker(port.acceptor)
    await port.connect(2)
    assert (first.take(), second.take()) == (1, 1)
    first.channel.send(REFUSED)
    await run_loop()
    assert first.take() + second.take() == 1
    first.die()
    second.die()


async def test_a_worker_that_does_not_answer_gets_hardly_any_connections(port: Port) -> None:
    stuck, quick = Worker(port.acceptor), Worker(port.acceptor)
    for _ in range(10):
        await port.connect(1)
        quick.channel.send(TAKEN * quick.take())
        await run_loop()
    assert (len(quick.got), stuck.take()) == (9, 1)
    stuck.die()
    await run_loop()
    assert quick.take() == 1
    quick.die()


async def test_the_unconfirmed_connections_per_worker_are_limited(port: Port) -> None:
    workers = [Worker(port.acceptor), Worker(port.acceptor)]
    await port.connect(2 * WINDOW + 9)
    assert [worker.take() for worker in workers] == [WINDOW, WINDOW]
    workers[1].channel.send(TAKEN * WINDOW)
    await run_loop()
    assert [worker.take() for worker in workers] == [0, 9]
    for worker in workers:
        worker.die()


async def test_connections_wait_for_the_first_worker(port: Port) -> None:
    await port.connect(4)
    worker = Worker(port.acceptor)
    await run_loop()
    assert worker.take() == 4
    worker.die()


async def test_connections_sent_before_the_port_closes_arrive_before_the_channel_ends(port: Port) -> None:
    worker = Worker(port.acceptor)
    await port.connect(2)
    port.acceptor.close()
    assert worker.take() == 2
    assert worker.channel.recv(1) == b""
    worker.die()


async def test_the_channel_of_a_worker_that_joins_after_the_port_closed_ends_at_once(port: Port) -> None:
    port.acceptor.close()
    worker = Worker(port.acceptor)
    assert worker.channel.recv(1) == b""
    worker.die()


async def test_all_addresses_of_a_host_get_the_same_free_port() -> None:
    opened = await bound("localhost", 0, 10)
    assert len({one.getsockname()[1] for one in opened}) == 1
    for one in opened:
        one.close()


async def test_a_port_cannot_be_bound_twice() -> None:
    (first,) = await bound("127.0.0.1", 0, 10)
    with pytest.raises(OSError, match="in use"):
        await bound("127.0.0.1", first.getsockname()[1], 10)
    first.close()
