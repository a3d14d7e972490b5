"""Ten minutes of mixed load with failing upstream hosts: `python -m tests.bench.soak [SECONDS]`.

Every answer repeats its question, so a wrong one is detected.  Prints what callers got and how much memory the server
used, and exits with 1 if any answer was wrong or cut short without an error, or if memory grew.
"""

# ruff: noqa: T201  (a command line prints)

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import aiohttp

from proxy.upstreams.demo import Fault, Simulator, running
from proxy.upstreams.demo.faults import Kind
from tests.bench.processes import CORES, Process, free_port, started

CALLERS: Final = 24
KINDS: Final[tuple[Kind, ...]] = ("status", "error_line", "eof", "reset", "garbage", "nested", "load_failure")
GROWTH: Final = 20.0
"""Maximum growth of the server in MB, from a fifth of the time to the end."""
QUESTIONS: Final = 500
"""Few enough that every question has been sent once within a fifth of the time: the edge's memory of request bodies,
which is bounded, would otherwise look like a leak."""


class Soak:
    def __init__(self, port: int, hosts: list[Simulator]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.hosts = hosts
        self.saw: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.chance = random.Random(11)

    async def trouble(self) -> None:
        """About one call in ten fails, before its first line or later."""
        while True:
            await asyncio.sleep(0.02)
            host = self.chance.choice(self.hosts)
            if len(host.faults) < 3:
                host.faults.append(Fault(self.chance.choice(KINDS), after=self.chance.choice((0, 0, 3))))

    async def caller(self, http: aiohttp.ClientSession, until: float) -> None:
        while time.monotonic() < until:
            number = int(self.chance.paretovariate(0.6)) % QUESTIONS
            mark = f"question-{number}-end"
            path, body = self.asked(mark)
            try:
                async with asyncio.timeout(self.chance.choice((0.01, 30, 30, 30))):
                    async with http.post(self.url + path, json=body) as response:
                        self.note(response.status, await response.text(), mark, path)
            except TimeoutError:
                self.saw["left"] += 1

    def asked(self, mark: str) -> tuple[str, dict[str, Any]]:
        messages = [{"role": "user", "content": mark}]
        stream = self.chance.random() < 0.5
        if self.chance.random() < 0.2:
            return "/v1/embeddings", {"model": "demo-embed", "input": [mark, "another"]}
        if self.chance.random() < 0.3:
            return "/api/chat", {"model": "demo", "messages": messages, "stream": stream}
        return "/v1/chat/completions", {"model": "demo", "messages": messages, "stream": stream}

    def note(self, status: int, text: str, mark: str, path: str) -> None:
        if status != 200:
            self.saw[f"told {json.loads(text)['error']['code'] if path.startswith('/v1') else status}"] += 1
        elif path == "/v1/embeddings":
            self.judge(len(json.loads(text)["data"]) == 2, "embedded", text)
        elif '"error"' in text:
            self.saw["told midway"] += 1
        else:
            ended = "[DONE]" in text or '"done":true' in text or '"finish_reason":"stop"' in text
            words = "".join(re.findall(r'"content":"((?:[^"\\]|\\.)*)"', text))
            self.judge(ended and mark in words, "answered", text)

    def judge(self, right: bool, name: str, text: str) -> None:
        self.saw[name if right else "WRONG"] += 1
        if not right and len(self.wrong) < 3:
            self.wrong.append(text[-600:])


async def soak(process: Process, hosts: list[Simulator], seconds: float) -> int:
    run = Soak(process.port, hosts)
    began = time.monotonic()
    trouble = asyncio.ensure_future(run.trouble())
    memory: list[float] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        callers = asyncio.gather(*(run.caller(http, began + seconds) for _ in range(CALLERS)))
        while not callers.done():
            await asyncio.wait([callers], timeout=seconds / 20)
            memory.append(process.memory)
            print(
                f"{time.monotonic() - began:6.0f} s  {memory[-1]:6.1f} MB  {sum(run.saw.values()):,} calls", flush=True
            )
        await callers
    trouble.cancel()
    growth = memory[-1] - memory[len(memory) // 5]
    for name, count in run.saw.most_common():
        print(f"{count:10,}  {name}")
    print(f"memory grew by {growth:.1f} MB", *run.wrong, sep="\n")
    return int(bool(run.saw["WRONG"]) or growth > GROWTH)


async def main(seconds: float) -> int:
    logging.disable()  # the simulated hosts log every client that disconnects
    hosts = [Simulator(parallel=64, delay=0.0005) for _ in range(2)]
    with tempfile.TemporaryDirectory() as place:
        folder, port = Path(place), free_port()
        async with running(hosts[0]) as one, running(hosts[1]) as other:
            (folder / "soak.yaml").write_text(
                f"listen: {{port: {port}}}\n"
                f"upstreams: {{pool: {{ollama: ['{one}', '{other}'], slots: 12}}}}\n"
                "stores: {small: {memory: {max_bytes: 2000000}}}\n"
                "plugins: {timeouts: {}, cache: {store: small, ttl: 5}, fallback: {}, retry: {wait: 0.01, budget: 1}}\n"
                "chains: {chat: [timeouts, cache, fallback, retry], embeddings: [timeouts, cache, fallback, retry]}\n"
            )
            arguments = ["proxy", "serve", "--config", str(folder / "soak.yaml")]
            starting = started(arguments, port, set(CORES), "/healthz", folder / "soak.log")
            process = await asyncio.to_thread(starting.__enter__)
            try:
                return await soak(process, hosts, seconds)
            finally:
                await asyncio.to_thread(starting.__exit__, None, None, None)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 600)))
