"""A worker's end of its channel from the supervisor."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from proxy.acceptor import REFUSED, TAKEN
from proxy.worker import ConnectionReceiver


@pytest.fixture
async def channel() -> AsyncIterator[socket.socket]:
    """The supervisor's end of the channel to a worker that answers every request with 204."""

    async def nothing(request: web.BaseRequest) -> web.Response:
        return web.Response(status=204)

    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    http = web.Server(nothing)
    intake = ConnectionReceiver(theirs)
    intake.open(http)
    yield ours
    ours.close()
    await intake.close()
    await http.shutdown()


async def test_a_connection_is_taken_and_served(channel: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        async with aiohttp.ClientSession() as client:
            asked = asyncio.ensure_future(client.get(f"http://127.0.0.1:{listening.getsockname()[1]}/"))
            connection, _ = await loop.sock_accept(listening)
            socket.send_fds(channel, [TAKEN], [connection.fileno()])
            assert await loop.sock_recv(channel, 10) == TAKEN
            connection.close()
            assert (await asked).status == 204


async def test_a_connection_is_refused_when_no_more_files_can_be_opened(channel: socket.socket) -> None:
    channel.send(TAKEN)  # then it arrives without its file descriptor
    assert await asyncio.get_running_loop().sock_recv(channel, 10) == REFUSED
