"""Load generators: wrk if it is installed, else a bare protocol on uvloop."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import cast

import uvloop

from tests.bench.asks import FIRST, Ask

CONNECTIONS = 32

SCRIPT = """\
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [==[%s]==]
local before, after = wrk.body:match("^(.*)VARIED(.*)$")
if before then
  local number = %d
  request = function()
    number = number + 1
    return wrk.format(nil, nil, nil, before .. string.format("%%d", number) .. after)
  end
end
function done(summary)
  local e = summary.errors
  print("counted", summary.requests, e.connect + e.read + e.write + e.status + e.timeout)
end
"""


def hammer(port: int, ask: Ask, seconds: int, folder: Path) -> int:
    """The number of answers that CONNECTIONS callers got.  Raises RuntimeError if any was an error."""
    if shutil.which("wrk"):
        return wrk(port, ask, seconds, folder)
    return uvloop.run(callers(port, ask, seconds))


def wrk(port: int, ask: Ask, seconds: int, folder: Path) -> int:
    script = folder / "wrk.lua"
    begin = FIRST + time.monotonic_ns() // 1000 % FIRST  # so that two runs do not use the same numbers
    script.write_text(SCRIPT % (ask.body, begin))
    url = f"http://127.0.0.1:{port}{ask.path}"
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}", "-s", str(script), url]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    counted = next(line for line in told.splitlines() if line.startswith("counted")).split()
    if int(counted[2]):
        raise RuntimeError(f"wrk met errors:\n{told}")
    return int(counted[1])


async def callers(port: int, ask: Ask, seconds: int) -> int:
    loop = asyncio.get_running_loop()
    found = [await loop.create_connection(lambda: Caller(ask), "127.0.0.1", port) for _ in range(CONNECTIONS)]
    await asyncio.sleep(seconds)
    for transport, _ in found:
        transport.abort()
    if any(caller.failed for _, caller in found):
        raise RuntimeError("a caller met an error")
    return sum(caller.answers for _, caller in found)


class Caller(asyncio.Protocol):
    """Sends the next request as soon as it is answered."""

    transport: asyncio.Transport

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.number = time.monotonic_ns() % FIRST
        self.answers = 0
        self.failed = False
        self.got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self.transport.write(self.ask.numbered(self.number))

    def data_received(self, data: bytes) -> None:
        self.got = self.got + data if self.got else data
        if not complete(self.got):
            return
        self.failed = self.failed or not self.got.startswith(b"HTTP/1.1 200")
        self.got = b""
        self.answers += 1
        self.number = (self.number + 1) % FIRST
        self.transport.write(self.ask.numbered(self.number))

    def connection_lost(self, error: Exception | None) -> None:
        self.failed = True


def complete(answer: bytes) -> bool:
    """Whether one answer is complete, chunked or with a length."""
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    at = head.lower().find(b"content-length: ")
    if at < 0:
        return body.endswith(b"\r\n0\r\n\r\n")
    return len(body) >= int(head[at + 16 :].split(b"\r\n", 1)[0])


def one_caller(port: int, ask: Ask, times: int) -> list[float]:
    """Seconds for each of `times` answers, one after the other on one connection."""
    number, waited = time.monotonic_ns() % FIRST, []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(times):
            number = (number + 1) % FIRST
            request = ask.numbered(number)
            began = time.perf_counter()
            connection.sendall(request)
            answer = connection.recv(65536)
            while not complete(answer):
                if not (more := connection.recv(65536)):
                    raise RuntimeError("the server closed the connection")
                answer += more
            waited.append(time.perf_counter() - began)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"the server answered {answer[:200]!r}")
    return waited
