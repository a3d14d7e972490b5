"""Runs the operator's trainer: a process of its own, watched, and bounded in time, in words and on disk."""

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
from proxy.host import rest, surely
from proxy.sql.lockfile import taken

GUARD: Final = Path(__file__).parent / "guard.py"
GRACE: Final = 10.0
"""Seconds that a trainer may take to end when it is told to, before it is killed."""
LOOK: Final = 0.2
"""Seconds between two looks whether it has ended."""
MEASURE: Final = 5.0
"""Seconds between two measurements of its folder."""
DRAIN: Final = 2.0
"""Seconds for what it has said last."""
LONGEST: Final = 64 * 1024
"""Bytes of a line that it says; a longer one is passed over."""
TAIL: Final = 4096
"""Bytes of its standard error that are remembered."""
PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ")
"""What it is told of the server's environment, whose other variables may be secrets."""
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
    """A training came to nothing; the code says why."""


@dataclass(frozen=True, slots=True)
class Training:
    """One run of a trainer.

    most: bytes that its folder may have.  hear: is given every line that it says.  rest: does what is to be done every
    now and then meanwhile, and raises to end it.
    """

    trainer: Trainer
    folder: Path
    most: int
    hear: Callable[[bytes], None]
    rest: Callable[[], Awaitable[None]]

    async def run(self, job: Path) -> None:
        """Returns when it has ended well.  Raises Failed; whatever ends this ends the process and its children."""
        with opened(self.folder) as lock:
            locked(lock)
            process, said = await asyncio.get_running_loop().subprocess_exec(
                lambda: Said(self.hear),
                *(sys.executable, "-I", "-S", str(GUARD), str(GRACE), *self.trainer.command, str(job)),
                cwd=self.folder,
                env=self.environment(),
                start_new_session=True,
                pass_fds=[lock],
            )
        try:
            await self.watched(said)
            await rest(DRAIN, said.silent)
        finally:
            await surely(end(process, said))
        said.check()
        if status := process.get_returncode():
            raise failed(status, said.tail)

    def environment(self) -> dict[str, str]:
        own = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        return {**own, "TMPDIR": str(self.folder), "PYTHONUNBUFFERED": "1", **self.trainer.env}

    async def watched(self, said: Said) -> None:
        """Until it has ended.  Raises Failed for what takes too long or too much, and what is wrong with its words."""
        loop = asyncio.get_running_loop()
        over, measured = loop.time() + self.trainer.timeout, loop.time()
        while not await rest(LOOK, said.ended):
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


class Said(asyncio.SubprocessProtocol):
    """What a trainer has said, cut into lines."""

    def __init__(self, hear: Callable[[bytes], None]) -> None:
        self.hear = hear
        self.ended = asyncio.Event()
        self.silent = asyncio.Event()
        """It has ended, and so has all that could speak for it."""
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
        """Raises what went wrong with hearing it."""
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
    """Raises OSError."""
    file = os.open(folder, os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)


def locked(file: int) -> bool:
    """False where another one has the lock, which stays for as long as any process has its file open."""
    try:
        return taken(file)
    except OSError:  # there are file systems without locks
        return True


async def left(folder: Path) -> None:
    """Nobody trains there any more: the trainer of a server that was killed goes on until its guard has ended it."""
    loop = asyncio.get_running_loop()
    over = loop.time() + 2 * GRACE
    with suppress(FileNotFoundError), opened(folder) as file:
        while not locked(file) and loop.time() < over:  # noqa: ASYNC110  (nobody tells)
            await asyncio.sleep(LOOK)


async def end(process: asyncio.SubprocessTransport, said: Said) -> None:
    """It has ended, and its children with it: the guard sees to that when nobody holds its input any more."""
    if (pipe := process.get_pipe_transport(0)) is not None:
        pipe.close()
    if not await rest(2 * GRACE, said.ended):
        with suppress(ProcessLookupError):
            process.kill()
        await rest(GRACE, said.ended)
    process.close()  # also pipes that are held open by what it has left behind


def failed(status: int, tail: bytes) -> Failed:
    words = tail.decode("utf-8", "replace").replace("\0", "").strip()[-1500:]
    said = f": {words}" if words else ", and wrote nothing to standard error."
    return Failed(f"The trainer ended with status {status}{said}", code="training_failed")


def size_of(folder: Path) -> int:
    """Bytes of all files in it.  What vanishes meanwhile has none."""
    whole = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                whole += os.lstat(os.path.join(place, name)).st_size
    return whole
