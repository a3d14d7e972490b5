"""The servers under test: each a process on one core, and the resources it uses."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.upstream import HOSTS

CORES: Final = sorted(os.sched_getaffinity(0))
LOAD: Final = CORES[0]
"""The core for the load generator and the upstream."""
MEASURED: Final = CORES[-1]
TICK: Final = os.sysconf("SC_CLK_TCK")
PATIENCE: Final = 60
"""Maximum seconds for a server to become ready."""


@dataclass(frozen=True, slots=True)
class Spent:
    """The resources used in a period.  cpu: seconds of the server; idle: fraction of the time its core was idle."""

    seconds: float
    cpu: float
    idle: float

    @property
    def others(self) -> float:
        """Fraction of the time that other processes used the core."""
        return max(0.0, 1 - self.idle - self.cpu / self.seconds)


@dataclass(slots=True)
class Process:
    """One server on 127.0.0.1."""

    popen: subprocess.Popen[bytes]
    port: int

    @property
    def cpu(self) -> float:
        """CPU seconds, user and system."""
        return cpu_of(self.popen.pid)

    @property
    def workers(self) -> dict[int, float]:
        """Its child processes, and their CPU seconds."""
        pid = self.popen.pid
        return {int(one): cpu_of(int(one)) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}

    @property
    def memory(self) -> float:
        """Resident MB."""
        lines = Path(f"/proc/{self.popen.pid}/status").read_text().splitlines()
        return int(next(one for one in lines if one.startswith("VmRSS:")).split()[1]) / 1024

    @contextmanager
    def watched(self) -> Iterator[list[Spent]]:
        """Yields a list, to which the resources used are added when the block is left."""
        spent: list[Spent] = []
        began, cpu, idle = time.perf_counter(), self.cpu, idle_time(MEASURED)
        yield spent
        seconds = time.perf_counter() - began
        spent.append(Spent(seconds, self.cpu - cpu, (idle_time(MEASURED) - idle) / seconds))

    def ready(self, path: str) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def stop(self) -> None:
        self.popen.terminate()
        try:
            self.popen.wait(10)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def idle_time(core: int) -> float:
    """Seconds that a core was idle since boot."""
    lines = Path("/proc/stat").read_text().splitlines()
    fields = next(one for one in lines if one.startswith(f"cpu{core} ")).split()
    return (int(fields[4]) + int(fields[5])) / TICK


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def pin(cores: set[int]) -> None:
    """Restrict this process, and those it starts, to these cores."""
    os.sched_setaffinity(0, cores)


@contextmanager
def started(arguments: list[str], port: int, cores: set[int], ready: str, errors: Path) -> Iterator[Process]:
    """A Python module that serves `port`, on `cores`, once `ready` answers 200.  Raises RuntimeError if it fails."""
    with serving([sys.executable, "-m", *arguments], port, cores, ready, errors) as process:
        yield process


@contextmanager
def serving(command: list[str], port: int, cores: set[int], ready: str, errors: Path) -> Iterator[Process]:
    """Like `started`, for any command.  errors: a file for its output."""
    with errors.open("wb") as file:
        popen = subprocess.Popen(command, preexec_fn=lambda: pin(cores), stdout=file, stderr=file)
    process = Process(popen, port)
    try:
        limit = time.perf_counter() + PATIENCE
        while not process.ready(ready):
            if popen.poll() is not None or time.perf_counter() > limit:
                raise RuntimeError(f"{' '.join(command)} did not start:\n{errors.read_text()[-2000:]}")
            time.sleep(0.005)
        yield process
    finally:
        process.stop()


@dataclass(frozen=True, slots=True)
class Bench:
    """A folder for files, and the upstream of all servers under test.

    module: the module to run as the proxy, with its own arguments.
    """

    folder: Path
    upstream: int
    module: tuple[str, ...] = ("proxy",)

    @contextmanager
    def forwarder(self) -> Iterator[Process]:
        port = free_port()
        arguments = ["tests.bench.forwarder", str(port), f"http://127.0.0.1:{self.upstream}"]
        with started(arguments, port, {MEASURED}, "/", self.folder / "forwarder.log") as process:
            yield process

    @contextmanager
    def proxy(
        self,
        chain: str = "",
        level: str = "info",
        hosts: int = 1,
        workers: int = 1,
        upstream: int = 0,
        more: str = "",
    ) -> Iterator[Process]:
        """chain: names of plugins, separated by a comma and a space.  upstream: the port of another upstream.
        more: lines of the configuration; if they include `plugins:`, they replace the plugins' default settings.

        Several workers may run on all cores.
        """
        port = free_port()
        config = self.folder / f"proxy-{port}.yaml"
        urls = [f"http://{host}:{upstream or self.upstream}" for host in HOSTS[:hosts]]
        plugins = ", ".join(f"{name}: {{}}" for name in chain.split(", ") if name)
        config.write_text(
            f"listen: {{port: {port}, drain: 1, workers: {workers}}}\n"
            f"upstreams: {{local: {{ollama: {urls}}}}}\n"
            f"log: {{level: {level}}}\n"
            f"chains: {{chat: [{chain}], embeddings: [{chain}]}}\n"
            + (more if "plugins:" in more else f"plugins: {{{plugins}}}\n{more}")
        )
        arguments = [*self.module, "serve", "--config", str(config)]
        cores = {MEASURED} if workers == 1 else set(CORES)
        with started(arguments, port, cores, "/readyz", config.with_suffix(".log")) as process:
            yield process

    @contextmanager
    def ollama(self, models: int) -> Iterator[int]:
        """The port of another upstream, which lists that many additional models."""
        port = free_port()
        arguments = ["tests.bench.upstream", str(port), str(models)]
        with started(arguments, port, {LOAD}, "/api/version", self.folder / "ollama.log"):
            yield port


@contextmanager
def bench(folder: Path) -> Iterator[Bench]:
    """Starts the upstream, and moves this process to the core for the load."""
    pin({LOAD})
    port = free_port()
    arguments = ["tests.bench.upstream", str(port)]
    with started(arguments, port, {LOAD}, "/api/version", folder / "upstream.log"):
        yield Bench(folder, port)
