"""Every way in which an Ollama fails, in every way of asking it: what the client sees, and what is left behind.

The table is what docs/failures.md says in words.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Any, Final

import aiohttp
import pytest

from proxy.upstreams.demo import Fault, Simulator, running
from tests.conftest import ASK, HI, Late, Running, Start
from tests.whole.asking import Stream, dead_url

LIMITS: Final = "{connect: 60, first_event: 600, between_events: 600, total: 900}"
CHAIN: Final = "[timeouts, cache, retry]"
CONFIG: Final = (
    f"plugins: {{timeouts: {LIMITS}, cache: {{}}, retry: {{attempts: 1}}}}\n"
    f"chains: {{chat: {CHAIN}, embeddings: {CHAIN}, completions: {CHAIN}}}\n"
)
UPSTREAM: Final = "upstreams: {local: {ollama: '$OLLAMA', slots: 2, max_answer_bytes: 100000}}\n"


@dataclass(frozen=True)
class Way:
    """One way of asking.  faulty: the path at Ollama where the fault waits."""

    path: str
    body: dict[str, Any]
    faulty: str
    stream: bool = False

    @property
    def native(self) -> bool:
        return self.path.startswith("/api/")


WAYS: Final = {
    "chat": Way("/v1/chat/completions", ASK, "/api/chat"),
    "chat stream": Way("/v1/chat/completions", {**ASK, "stream": True}, "/api/chat", True),
    "native chat": Way("/api/chat", {**ASK, "stream": False}, "/api/chat"),
    "native stream": Way("/api/chat", ASK, "/api/chat", True),
    "completion": Way("/v1/completions", {"model": "demo", "prompt": "hi", "max_tokens": 50}, "/api/generate"),
    "completion stream": Way(
        "/v1/completions", {"model": "demo", "prompt": "hi", "max_tokens": 50, "stream": True}, "/api/generate", True
    ),
    "native generate": Way("/api/generate", {"model": "demo", "prompt": "hi"}, "/api/generate", True),
    "embedding": Way("/v1/embeddings", {"model": "demo-embed", "input": "hi"}, "/api/embed"),
}
BEFORE: Final[dict[str, tuple[Fault, int, str]]] = {
    "500": (Fault("status"), 502, "upstream_server"),
    "503": (Fault("status", status=503), 503, "upstream_overloaded"),
    "429": (Fault("status", status=429), 503, "upstream_overloaded"),
    "nested 400": (Fault("nested"), 400, "context_length_exceeded"),
    "reset": (Fault("reset"), 502, "upstream_cut"),
    "end": (Fault("eof"), 502, "upstream_cut"),
    "garbage": (Fault("garbage"), 502, "upstream_server"),
    "stall": (Fault("stall"), 504, "upstream_timeout"),
    "a long line": (Fault("long_line", size=10_000_000), 502, "upstream_server"),
    "a load that fails": (Fault("load_failure"), 502, "upstream_load"),
    "a load that takes long": (Fault("slow_load"), 504, "upstream_timeout"),
}
MIDWAY: Final = {
    "an error line": Fault("error_line", after=3),
    "reset": Fault("reset", after=3),
    "end": Fault("eof", after=3),
    "garbage": Fault("garbage", after=3),
    "stall": Fault("stall", after=3),
    "a long line": Fault("long_line", after=3, size=10_000_000),
}


async def ask(run: Running, way: Way, midway: Awaitable[None] | None = None) -> tuple[int, str]:
    """midway: what is waited for between the beginning of an answer and the rest of it."""
    async with run.http.post(run.url + way.path, json=way.body) as response:
        if midway is not None:
            await midway
        return response.status, await response.text()


def refused(way: Way, text: str, code: str) -> None:
    """In the form of its dialect."""
    error = json.loads(text)["error"]
    assert isinstance(error, str) if way.native else error["code"] == code


def broken(way: Way, text: str) -> None:
    """It began, ended with an error, and does not look whole."""
    if way.native:
        lines = [json.loads(line) for line in text.splitlines()]
        assert "error" in lines[-1] and not any(line.get("done") for line in lines) and len(lines) > 1
    else:
        stream = Stream(text)
        assert stream.broken["message"] and len(stream.chunks) > 1


def at(fault: Fault, way: Way) -> Fault:
    return replace(fault, path=way.faulty)


async def nothing_left(run: Running) -> None:
    """No place, no task and no shared generation; and nothing was kept."""
    pool = run.server.live.pipeline.value.upstreams["local"]
    async with asyncio.timeout(30):
        while (  # noqa: ASYNC110  (they end by themselves, and tell nobody)
            any(one.busy for one in pool.states) or len(pool.queue.order) or run.server.services.state["cache flights"]
        ):
            await asyncio.sleep(0.01)
    names = [task.get_name() for task in run.server.services.background.tasks]
    assert not [name for name in names if "shared" in name]
    kept = await (await run.http.get(f"{run.url}/api/cache/stats")).json()
    assert kept["entries"] == 0


async def healed(run: Running, way: Way) -> None:
    """The next one is answered, kept, and answered from what was kept."""
    run.ollama.faults.clear()
    for told in ("miss", "hit"):
        async with run.http.post(run.url + way.path, json=way.body) as response:
            assert (response.status, response.headers["x-gemmapy-cache"]) == (200, told), await response.text()
            text = await response.text()
    if way.stream:
        assert text.endswith("data: [DONE]\n\n") or json.loads(text.splitlines()[-1])["done"]


# An answer of embeddings is one document of a known length: it ends early as a reset does, and has no lines.
LINES: Final = ("end", "a long line")
CASES: Final = [(way, fault) for way in WAYS for fault in BEFORE if way != "embedding" or fault not in LINES]


@pytest.mark.parametrize(("way", "fault"), CASES)
async def test_before_the_first_event(start: Start, late: Late, way: str, fault: str) -> None:
    given, status, code = BEFORE[fault]
    asked, loaded = WAYS[way], asyncio.Event()
    if given.kind == "slow_load":
        given = replace(given, until=loaded)
    async with start(CONFIG + UPSTREAM, Simulator(faults=[at(given, asked)])) as run:
        asking = asyncio.ensure_future(ask(run, asked))
        if code == "upstream_timeout":
            await run.ollama.until(lambda: not run.ollama.faults)
            await late(run)
        found, text = await asking
        assert found == status, text
        refused(asked, text, code)
        await nothing_left(run)
        loaded.set()
        await healed(run, asked)


@pytest.mark.parametrize("fault", MIDWAY)
@pytest.mark.parametrize("way", [name for name, way in WAYS.items() if way.stream])
async def test_midway(start: Start, late: Late, way: str, fault: str) -> None:
    asked = WAYS[way]
    async with start(CONFIG + UPSTREAM, Simulator(faults=[at(MIDWAY[fault], asked)], delay=0.005)) as run:
        found, text = await ask(run, asked, late(run) if fault == "stall" else None)
        assert found == 200
        broken(asked, text)
        await nothing_left(run)
        await healed(run, asked)


@pytest.mark.parametrize("way", WAYS)
async def test_nobody_listens_and_then_somebody_does(start: Start, way: str) -> None:
    url, asked = dead_url(), WAYS[way]
    async with start(CONFIG + UPSTREAM.replace("$OLLAMA", url)) as run:
        found, text = await ask(run, asked)
        assert found == 502 and "refused" in text
        await nothing_left(run)
        async with running(Simulator(), port=int(url.rpartition(":")[2])):
            await healed(run, asked)


@pytest.mark.parametrize("way", WAYS)
async def test_a_caller_that_leaves_ends_it_all(start: Start, way: str) -> None:
    asked = WAYS[way]
    async with start(CONFIG + UPSTREAM, Simulator(faults=[at(Fault("stall"), asked)])) as run:
        task = asyncio.ensure_future(ask(run, asked))
        await run.ollama.until(lambda: run.ollama.running == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await run.ollama.until_abandoned(1)
        await nothing_left(run)
        await healed(run, asked)


async def test_calls_in_all_ways_at_once_leave_nothing_behind(start: Start) -> None:
    faults = [Fault(kind, times=3) for kind in ("status", "reset", "eof", "garbage", "error_line")]
    async with start(CONFIG + UPSTREAM, Simulator(faults=faults)) as run:

        async def one(number: int) -> int:
            way = list(WAYS.values())[number % len(WAYS)]
            body = {**way.body, "seed": number} if "embed" not in way.path else {**way.body, "input": f"{number}"}
            if way.native:
                body = {**way.body, "messages": [*HI, {"role": "user", "content": f"{number}"}]}
            async with run.http.post(run.url + way.path, json=body) as response:
                await response.read()
                return response.status

        statuses = await asyncio.gather(*(one(number) for number in range(60)), return_exceptions=True)
        assert not [one for one in statuses if isinstance(one, aiohttp.ClientError)]
        pool = run.server.live.pipeline.value.upstreams["local"]
        assert [one.busy for one in pool.states] == [0] and len(pool.queue.order) == 0
        assert run.server.services.state["cache flights"] == {}
