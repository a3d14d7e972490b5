"""Serves a simulator, for a test or from the command line."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from proxy.port import Port

from .simulator import Simulator


@asynccontextmanager
async def running(simulator: Simulator, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve the simulator until the block is left; gives its URL."""
    runner = web.AppRunner(
        simulator.app(),
        handler_cancellation=True,
        shutdown_timeout=0.1,
        access_log=None,
        keepalive_timeout=60,
    )
    await runner.setup()
    try:
        await Port(runner, host, port).start()
        yield f"http://{f'[{host}]' if ':' in host else host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def simulate(host: str, port: int, *, delay: float = 0.0, load_time: float = 0.0) -> None:
    """Serve a simulator until SIGTERM or SIGINT; prints its URL."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(Simulator(delay=delay, load_time=load_time), host, port) as url:
        sys.stdout.write(f"A simulated Ollama listens on {url}\n")
        sys.stdout.flush()
        await stop.wait()
