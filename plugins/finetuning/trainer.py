"""Runs the operator's trainer: a separate process, watched, with limits on time, output and disk space."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, PositiveFloat

from proxy.config import Strict
from proxy.errors import ProxyError
from proxy.host import interruptible_sleep, shielded
from proxy.sql.lockfile import try_lock

GUARD: Final = Path(__file__).parent / "guard.py"
GRACE: Final = 10.0
"""Seconds that a trainer may take to end after SIGTERM, before it is killed."""
LOOK: Final = 0.2
"""Seconds between two checks whether it has ended."""
MEASURE: Final = 5.0
"""Seconds between two measurements of its folder's size."""
DRAIN: Final = 2.0
"""Seconds to wait for its last output."""
LONGEST: Final = 64 * 1024
"""Maximum bytes of a line of its output; longer lines are ignored."""
TAIL: Final = 4096
"""Bytes of its standard error that are kept."""
PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ")
"""The server's environment variables that it gets; others may be secrets."""
Output = Literal["peft", "gguf_adapter", "gguf"]
Word = Annotated[str, Field(min_length=1)]


class Trainer(Strict):
    """One way to train."""

    command: Annotated[tuple[Word, ...], Field(min_length=1)]
    """The program and its arguments, run without a shell; the path of `job.json` is added as the last one."""
    models: tuple[Word, ...] = ("*",)
    """Patterns of the models that it trains, as in a shell; the first trainer with a matching one is used."""
    output: Output = "peft"
    """What it writes to its output folder: `peft` is `adapter_config.json` with `adapter_model.safetensors`,
    `gguf_adapter` one GGUF file with an adapter, `gguf` one with a whole model."""
    env: dict[str, str] = Field(default_factory=dict)
    """Its environment variables, besides PATH, HOME and the locale; it gets no others from the server."""
    timeout: PositiveFloat = 86_400.0
    """Seconds that a training may take."""


class Failed(ProxyError):
    """A failed training; `code` says why."""


@dataclass(frozen=True, slots=True)
class Training:
    """One run of a trainer.

    most: maximum bytes of its folder.  hear: is called with every line of its output.  rest: is called regularly
    meanwhile, and raises to stop it.
    """

    trainer: Trainer
    folder: Path
    most: int
    hear: Callable[[bytes], None]
    rest: Callable[[], Awaitable[None]]

    async def run(self, job: Path) -> None:
        """Returns when it has succeeded.  Raises Failed; any other way out also ends the process and its children."""
        with opened(self.folder) as lock:
            locked(lock)
            process, said = await asyncio.get_running_loop().subprocess_exec(
                lambda: OutputProtocol(self.hear),
                *(sys.executable, "-I", "-S", str(GUARD), str(GRACE), *self.trainer.command, str(job)),
                cwd=self.folder,
                env=self.environment(),
                start_new_session=True,
                pass_fds=[lock],
            )
        try:
            await self.watched(said)
            await interruptible_sleep(DRAIN, said.silent)
        finally:
            await shielded(end(process, said))
        said.check()
        if status := process.get_returncode():
            raise failed(status, said.tail)

    def environment(self) -> dict[str, str]:
        own = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        return {**own, "TMPDIR": str(self.folder), "PYTHONUNBUFFERED": "1", **self.trainer.env}

    async def watched(self, said: OutputProtocol) -> None:
        """Wait until it has ended.  Raises Failed if it exceeds a limit, and what `hear` raised."""
        loop = asyncio.get_running_loop()
        over, measured = loop.time() + self.trainer.timeout, loop.time()
        while not await interruptible_sleep(LOOK, said.ended):
            await self.rest()
            said.check()
            if loop.time() > over:
                raise Failed(f"The training took more than {self.trainer.timeout:g} seconds.", code="training_timeout")
            if loop.time() - measured > MEASURE:
                await self.measure()
                measured = loop.time()
        await self.measure()

    async def measure(self) -> None:
        if await asyncio.to_thread(size_of, self.folder) > self.most:
            raise Failed(f"The training wrote more than {self.most} bytes.", code="training_too_large")


class OutputProtocol(asyncio.SubprocessProtocol):
    """Receives a trainer's output, and splits it into lines."""

    def __init__(self, hear: Callable[[bytes], None]) -> None:
        self.hear = hear
        self.ended = asyncio.Event()
        self.silent = asyncio.Event()
        """Set once it has exited and all its pipes are closed, including those that its children hold."""
        self.problem: Exception | None = None
        self.rest = b""
        self.skipping = False
        self.tail = b""

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        try:
            (self.take if fd == 1 else self.complain)(data)
        except Exception as error:
            self.problem = self.problem or error

    def check(self) -> None:
        """Raises the first exception of `hear`."""
        if self.problem is not None:
            raise self.problem

    def process_exited(self) -> None:
        self.ended.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.silent.set()

    def take(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            if not self.skipping and len(line) <= LONGEST:
                self.hear(line)
            self.skipping = False
        if len(self.rest) > LONGEST:
            self.rest, self.skipping = b"", True

    def complain(self, data: bytes) -> None:
        self.tail = (self.tail + data)[-TAIL:]


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """A descriptor of a folder.  Raises OSError."""
    file = os.open(folder, os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)


def locked(file: int) -> bool:
    """Lock a file; False if another process has the lock, which lasts while any process has that descriptor open."""
    try:
        return try_lock(file)
    except OSError:  # some file systems do not support locks
        return True


async def left(folder: Path) -> None:
    """Wait until no trainer runs in the folder, at most 2 * GRACE seconds: the trainer of a server that was killed runs
    until its guard has ended it."""
    loop = asyncio.get_running_loop()
    over = loop.time() + 2 * GRACE
    with suppress(FileNotFoundError), opened(folder) as file:
        while not locked(file) and loop.time() < over:  # noqa: ASYNC110  (there is no event for it)
            await asyncio.sleep(LOOK)


async def end(process: asyncio.SubprocessTransport, said: OutputProtocol) -> None:
    """End the process and its children: the guard ends them once its standard input is closed."""
    if (pipe := process.get_pipe_transport(0)) is not None:
        pipe.close()
    if not await interruptible_sleep(2 * GRACE, said.ended):
        with suppress(ProcessLookupError):
            process.kill()
        await interruptible_sleep(GRACE, said.ended)
    process.close()  # also closes pipes that its descendants hold open


def failed(status: int, tail: bytes) -> Failed:
    words = tail.decode("utf-8", "replace").replace("\0", "").strip()[-1500:]
    said = f": {words}" if words else ", and wrote nothing to standard error."
    return Failed(f"The trainer ended with status {status}{said}", code="training_failed")


def size_of(folder: Path) -> int:
    """Total bytes of all files in it; files that vanish meanwhile count as empty."""
    whole = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                whole += os.lstat(os.path.join(place, name)).st_size
    return whole
