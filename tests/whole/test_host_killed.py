"""A host of a pool is killed under load, and what its clients saw is counted."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import aiohttp

from tests.conftest import ASK, Running, Start
from tests.whole.commands import Serving, served

CHAIN = "plugins: {retry: {attempts: 4, wait: 0.05}}\nchains: {chat: [retry]}\n"
CALLERS = 8


async def call(run: Running, http: aiohttp.ClientSession, stream: bool) -> str:
    """`whole`, `broken` (a stream that ended with an error), `refused`, or `silent` (cut short without an error)."""
    async with http.post(f"{run.url}/v1/chat/completions", json={**ASK, "stream": stream}) as response:
        text = await response.text()
    if response.status != 200:
        return "refused"
    if not stream:
        return "whole" if json.loads(text)["choices"][0]["finish_reason"] == "stop" else "silent"
    if text.endswith("data: [DONE]\n\n"):
        return "whole"
    return "broken" if '"error"' in text else "silent"


async def test_only_streams_running_on_the_killed_host_are_lost_and_each_ends_with_an_error(start: Start) -> None:
    pattern = r"listens on (http://[\d.:]+)"
    async with (
        served("simulate", "--port", "0", "--delay", "0.015", pattern=pattern) as dying,
        served("simulate", "--port", "0", "--delay", "0.015", pattern=pattern) as steady,
        start(f"{CHAIN}upstreams: {{pool: {{ollama: ['{dying.url}', '{steady.url}'], slots: 6}}}}\n") as run,
        aiohttp.ClientSession() as http,
    ):
        saw: Counter[str] = Counter()
        stop = asyncio.Event()

        async def caller(stream: bool) -> None:
            while not stop.is_set():
                saw["stream " * stream + await call(run, http, stream)] += 1

        async with asyncio.TaskGroup() as callers:
            for number in range(CALLERS):
                callers.create_task(caller(number % 2 == 0))
            await until(saw, CALLERS)
            begun = await killed_while_streaming(run, dying)
            ends = [(one, (await one.text()).endswith("data: [DONE]\n\n")) for one in begun]
            await until(saw, saw.total() + 2 * CALLERS)
            stop.set()
    host = dying.url.removeprefix("http://")
    broken = [one.headers["x-gemmapy-upstream"] for one, whole in ends if not whole]
    assert broken and set(broken) == {f"pool/{host}"}
    assert set(saw) <= {"whole", "stream whole", "stream broken"}, saw
    assert saw["stream broken"] <= 6, "at most as many as the host has slots"


async def killed_while_streaming(run: Running, dying: Serving) -> list[aiohttp.ClientResponse]:
    """Streams that have begun; the host is killed as soon as one of them comes from it."""
    host, begun = dying.url.removeprefix("http://"), []
    while dying.process.returncode is None:
        asking = [asyncio.ensure_future(run.chat(stream=True)) for _ in range(4)]
        for answered in asyncio.as_completed(asking):
            response = await answered
            begun.append(response)
            if response.headers["x-gemmapy-upstream"].endswith(host) and dying.process.returncode is None:
                dying.process.kill()
                await dying.process.wait()
    return begun


async def until(saw: Counter[str], count: int) -> None:
    async with asyncio.timeout(10):
        while saw.total() < count:  # noqa: ASYNC110  (a counter has no event)
            await asyncio.sleep(0.005)
