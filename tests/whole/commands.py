"""Runs the command line as users do."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.forks import PROXY, Forked, forks

PROGRAM = "import runpy; runpy.run_module('proxy', run_name='__main__', alter_sys=True)"
PATIENCE = 120.0
"""Seconds to wait for a process: several times what a busy machine takes to start Python."""
OPEN = """
import proxy.server, proxy.supervisor
from proxy.config import Strict

proxy.server.GRACE = proxy.supervisor.GRACE = 60.0


class Open:
    class Settings(Strict):
        pass

    def __init__(self, settings, host):
        pass
"""


def kept_open(folder: Path) -> tuple[dict[str, str], str]:
    """An environment and a line of YAML for a server that, while stopping, listens until the calls under way end."""
    (folder / "kept_open.py").write_text(OPEN)
    return {"PYTHONPATH": os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", "")))}, (
        "plugins: {open: {use: 'kept_open:Open'}}\n"
    )


async def command(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """The exit status, standard output and standard error of a command that ends by itself."""
    process = await forks(*PROXY).run(PROGRAM, *arguments, env=env)
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    return await process.wait(), out.decode(), err.decode()


class Serving:
    """A server process, its URL, and in `banner` the output read so far."""

    def __init__(self, process: asyncio.subprocess.Process | Forked, stream: asyncio.StreamReader) -> None:
        self.process = process
        self.stream = stream
        self.url = ""
        self.banner = ""

    async def until(self, pattern: str) -> str:
        """Read lines until one matches, and return it."""
        async with asyncio.timeout(PATIENCE):
            while line := (await self.stream.readline()).decode():
                self.banner += line
                if re.search(pattern, line):
                    return line
        raise AssertionError(f"it ended without a line like {pattern!r}: {self.banner}")

    async def rest(self) -> str:
        """Wait for the end of the output, and return all of it."""
        self.banner += (await asyncio.wait_for(self.stream.read(), PATIENCE)).decode()
        return self.banner


async def fresh_process(*arguments: str) -> Serving:
    """Start a new Python that imports everything, as users do, instead of forking."""
    command = (sys.executable, "-m", "proxy", *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=STDOUT)
    assert process.stdout is not None
    return Serving(process, process.stdout)


async def forked(*arguments: str, env: dict[str, str] | None = None) -> Serving:
    process = await forks(*PROXY).run(PROGRAM, *arguments, env=env, apart=False)
    return Serving(process, process.streams[0])


@asynccontextmanager
async def served(
    *arguments: str,
    first: str = "listens on",
    pattern: str = r"listens on (http://[\d.:]+)",
    begin: Callable[..., Awaitable[Serving]] = forked,
    **more: Any,
) -> AsyncIterator[Serving]:
    """Run the server until the block is left.

    first: what the line to wait for contains.
    pattern: matches the URL in that line, if there is one.
    """
    serving = await begin(*arguments, **more)
    try:
        found = re.search(pattern, await serving.until(first))
        serving.url = found[1] if found else ""
        yield serving
    finally:
        if serving.process.returncode is None:
            serving.process.kill()
        await serving.process.communicate()
