"""The command line, run as its users run it."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

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
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "proxy",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    return process.returncode or 0, out.decode(), err.decode()


class Serving:
    """A server process, its URL, and what it wrote since."""

    def __init__(self, process: asyncio.subprocess.Process, stream: asyncio.StreamReader) -> None:
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


@asynccontextmanager
async def served(
    *arguments: str,
    first: str = "listens on",
    pattern: str = r"listens on (http://[\d.:]+)",
    env: dict[str, str] | None = None,
) -> AsyncIterator[Serving]:
    """first: of the line that is waited for; `pattern` finds the URL in it, where one is told."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "proxy",
        *arguments,
        stderr=asyncio.subprocess.STDOUT,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    assert process.stdout is not None
    serving = Serving(process, process.stdout)
    try:
        found = re.search(pattern, await serving.until(first))
        serving.url = found[1] if found else ""
        yield serving
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
