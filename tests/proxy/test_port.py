"""While a port is being closed, no accepted connection may be lost between two iterations of the event loop."""

import asyncio
import gc
import resource
import socket
from collections.abc import Callable

import pytest
import uvloop
from aiohttp import web

from proxy.port import Port, allow_files

ASK = b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"


async def answer(_: web.BaseRequest) -> web.Response:
    return web.Response(text="here")


async def answer_at_closing(turns: int) -> bytes:
    """The answer to a client whose connection is this many iterations of the event loop old when the port closes."""
    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=1)
    await runner.setup()
    port = Port(runner, "127.0.0.1", 0)
    await port.start()
    address = runner.addresses[0]
    with socket.create_connection(address) as client:
        client.sendall(ASK)
        for _ in range(turns):
            await asyncio.sleep(0)
        await port.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address).close()
        client.setblocking(False)
        async with asyncio.timeout(10):
            said = await asyncio.get_running_loop().sock_recv(client, 1_000)
        await runner.cleanup()
    return said


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_accepted_connections_are_answered(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    for turns in range(6):
        with asyncio.Runner(loop_factory=loop) as runner:
            assert runner.run(answer_at_closing(turns)).startswith(b"HTTP/1.1 200"), turns
    gc.collect()  # a connection left open would cause a ResourceWarning here, which is an error


def test_accepted_connections_without_a_request_are_closed() -> None:
    async def silent(turns: int) -> None:
        runner = web.ServerRunner(web.Server(answer), shutdown_timeout=1)
        await runner.setup()
        await Port(runner, "127.0.0.1", 0).start()
        with socket.create_connection(runner.addresses[0]):
            for _ in range(turns):
                await asyncio.sleep(0)
            await runner.cleanup()

    for turns in range(6):
        asyncio.run(silent(turns))
    gc.collect()


@pytest.mark.parametrize(("had", "granted", "got", "told"), [(1024, 20_000, 20_000, 0), (64, 1024, 1024, 1)])
def test_the_limit_of_open_files_is_raised_to_the_maximum(
    had: int, granted: int, got: int, told: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (had, granted))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    allow_files()
    assert asked == [(got, granted)] and len(caplog.records) == told
