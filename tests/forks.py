"""Runs Python programs, each in a process of its own in which the slow imports have been done already.

Starting Python and importing the proxy takes half a second of CPU time, and importing a client library even more.
So one process does it once and forks for each program.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

CLIENTS = ("openai", "openai.resources.chat", "openai.resources.responses", "openai.types.responses", "httpx")
PROXY = (
    *(
        "proxy.cli",
        "proxy.server",
        "proxy.supervisor",
        "proxy.sql.migrations",
        "proxy.sql.sqlite",
        "proxy.upstreams.demo",
    ),
    *("plugins.usage", "plugins.documents", "asyncpg", "redis.asyncio", "rich", "uvloop"),
)
ROOT = Path(__file__).parent.parent
LONG = 120.0
"""Seconds that an example may take on a busy machine."""
LARGEST = 1 << 17
"""The maximum size of an order, in bytes."""


class Forked:
    """A process with the parts of `asyncio.subprocess.Process` that tests use."""

    def __init__(self, pid: int, told: asyncio.StreamReader, *streams: asyncio.StreamReader) -> None:
        self.pid = pid
        self.told = told
        self.streams = streams
        self.returncode: int | None = None

    async def wait(self) -> int:
        if self.returncode is None:
            self.returncode = int(await self.told.readline())
            await self.told.read()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def communicate(self) -> list[bytes]:
        """Wait for its end; the rest of its standard output, and of its standard error if that is separate."""
        written = await asyncio.gather(*(one.read() for one in self.streams))
        await self.wait()
        return written


class Forks:
    """The process that forks."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        self.orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.forks", str(theirs.fileno()), *modules]
            alone = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # forking with threads is unsafe
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=alone, cwd=ROOT)

    def close(self) -> None:
        self.orders.close()
        self.process.wait()

    async def run(self, code: str, *arguments: str, env: Mapping[str, str] | None = None, apart: bool = True) -> Forked:
        """Run the code in a new process.  apart: standard error is a separate stream."""
        order = {"code": code, "arguments": arguments, "env": {**os.environ, **(env or {})}, "folder": os.getcwd()}
        pipes = [os.pipe() for _ in range(3 if apart else 2)]
        socket.send_fds(self.orders, [json.dumps(order).encode()], [end for _, end in pipes])
        for _, end in pipes:
            os.close(end)
        told, *streams = [await stream(start) for start, _ in pipes]
        return Forked(int(await told.readline()), told, *streams)


OPEN = ExitStack()
"""Closes the forking processes that were started."""


@cache
def forks(*modules: str) -> Forks:
    """The process that forks with these modules imported; the first caller starts it."""
    return OPEN.enter_context(closing(Forks(modules)))


async def ran(code: str) -> subprocess.CompletedProcess[str]:
    """The outcome of a client program."""
    process = await forks(*CLIENTS).run(code)
    try:
        out, err = await asyncio.wait_for(process.communicate(), LONG)
    finally:
        process.kill()
    return subprocess.CompletedProcess([], await process.wait(), out.decode(), err.decode())


async def stream(pipe: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    file = os.fdopen(pipe, "rb", 0)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
    return reader


def next_order(orders: socket.socket, told: dict[int, int]) -> str | None:
    """In each forked process, the code to run; in the parent, None when there are no more orders."""
    while (received := socket.recv_fds(orders, LARGEST, 3))[0]:
        written, (tell, *streams), *_ = received
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # until `told` has the new process
        if not (pid := os.fork()):
            orders.close()
            for one in (tell, *told.values()):
                os.close(one)
            return begun(json.loads(written), streams)
        os.write(tell, b"%d\n" % pid)
        told[pid] = tell
        for one in streams:
            os.close(one)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    return None


def begun(order: Any, streams: list[int]) -> str:
    """Set up the forked process as if Python had just started; gives the code to run."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    os.dup2(streams[0], 1)
    os.dup2(streams[-1], 2)
    for one in streams:
        os.close(one)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["folder"])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = ["", *(path for path in paths if path and path not in sys.path)]
    sys.argv = ["-c", *order["arguments"]]
    return str(order["code"])


def tell_of_ends(told: dict[int, int]) -> None:
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            pid, status = ended
            with suppress(BrokenPipeError), os.fdopen(told.pop(pid), "wb", 0) as tell:
                tell.write(b"%d\n" % os.waitstatus_to_exitcode(status))


def main() -> str | None:
    told: dict[int, int] = {}
    for name in sys.argv[2:]:
        import_module(name)
    gc.freeze()  # otherwise a garbage collection in each child would copy these pages
    signal.signal(signal.SIGCHLD, lambda *_: tell_of_ends(told))
    return next_order(socket.socket(fileno=int(sys.argv[1])), told)


if __name__ == "__main__" and (code := main()):
    sys.modules["__main__"] = ModuleType("__main__")
    exec(compile(code, "<string>", "exec", dont_inherit=True), vars(sys.modules["__main__"]))
