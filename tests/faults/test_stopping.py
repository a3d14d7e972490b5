"""A host that goes down and up under load, behind the packaged chain: counts what clients see."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest

from proxy.upstreams.demo import Simulator, running
from tests.conftest import ASK, Running, Start
from tests.whole.asking import dead_url, user

CHAIN = (
    "plugins: {timeouts: {total: 10}, cache: {}, fallback: {}, retry: {attempts: 4, wait: 0.05, budget: 1}}\n"
    "chains: {chat: [timeouts, cache, fallback, retry]}\n"
)


async def ask(run: Running, number: int) -> str:
    """`right`, `told` for a reported error, `silent` for a cut-off stream without one, or else what came back."""
    stream = number % 2 == 0
    body = {**ASK, "stream": stream, "messages": user(f"say {number}"), "seed": number}
    async with run.http.post(f"{run.url}/v1/chat/completions", json=body) as response:
        text = await response.text()
    if response.status != 200:
        return "told" if "error" in json.loads(text) else text
    if f"say {number}" in text.replace('\\"', "") or (stream and f"{number}" in text):
        whole = text.endswith("data: [DONE]\n\n") if stream else True
        return "right" if whole else "told" if '"error"' in text else "silent"
    return "told" if '"error"' in text else "wrong"


class Callers:
    """Clients that call without pause, with a different question each time."""

    def __init__(self, run: Running) -> None:
        self.run = run
        self.saw: Counter[str] = Counter()
        self.number = 0
        self.stop = asyncio.Event()

    async def call(self) -> None:
        while not self.stop.is_set():
            self.number += 1
            self.saw[await ask(self.run, self.number)] += 1


async def test_no_answer_is_lost_without_an_error_while_a_host_goes_down_and_up(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstreams.watch.PROBE", 0.05)
    bad, times = dead_url(), 3
    good = Simulator(delay=0.002, parallel=64)
    text = f"{CHAIN}upstreams: {{pool: {{ollama: ['$OLLAMA', '{bad}'], slots: 4}}}}\n"
    async with start(text, good) as run:
        callers = Callers(run)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(8):
                tasks.create_task(callers.call())
            for _ in range(times):
                await asyncio.sleep(0.1)
                async with running(Simulator(delay=0.002, parallel=64), port=int(bad.rpartition(":")[2])):
                    await asyncio.sleep(0.3)
            async with asyncio.timeout(20):
                while callers.saw["right"] <= 50:  # noqa: ASYNC110  (there is no event)
                    await asyncio.sleep(0.01)
            callers.stop.set()
    assert set(callers.saw) <= {"right", "told"}, callers.saw
    assert callers.saw["told"] <= 4 * times, "at most the calls that ran on it when it went down"
