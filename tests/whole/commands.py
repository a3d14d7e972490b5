"""The command line, run as its users run it."""

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
"""Seconds that a busy machine may take to start Python, several times over."""
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
    """An environment and a line of YAML: of a server whose port stays open while calls are under way when it stops."""
    (folder / "kept_open.py").write_text(OPEN)
    return {"PYTHONPATH": os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", "")))}, (
        "plugins: {open: {use: 'kept_open:Open'}}\n"
    )


async def command(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one that ends by itself."""
    process = await forks(*PROXY).run(PROGRAM, *arguments, env=env)
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    return await process.wait(), out.decode(), err.decode()


class Serving:
    """A server process, its URL, and what it wrote since."""

    def __init__(self, process: asyncio.subprocess.Process | Forked, stream: asyncio.StreamReader) -> None:
        self.process = process
        self.stream = stream
        self.url = ""
        self.banner = ""

    async def until(self, pattern: str) -> str:
        """The first line from now on that matches."""
        async with asyncio.timeout(PATIENCE):
            while line := (await self.stream.readline()).decode():
                self.banner += line
                if re.search(pattern, line):
                    return line
        raise AssertionError(f"it ended without a line like {pattern!r}: {self.banner}")

    async def rest(self) -> str:
        """Everything it wrote, once it has ended."""
        self.banner += (await asyncio.wait_for(self.stream.read(), PATIENCE)).decode()
        return self.banner


async def anew(*arguments: str) -> Serving:
    """One for which Python starts and imports everything, as it does for users."""
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
    """first: of the line that is waited for; `pattern` finds the URL in it, where one is told."""
    serving = await begin(*arguments, **more)
    try:
        found = re.search(pattern, await serving.until(first))
        serving.url = found[1] if found else ""
        yield serving
    finally:
        if serving.process.returncode is None:
            serving.process.kill()
        await serving.process.communicate()
