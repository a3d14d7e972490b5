"""Every kind of failure of an Ollama, for every kind of call: what the client sees, and what is left behind.

These are the cases of docs/failures.md.
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
    """A way of calling the server.  faulty: the path at Ollama where the fault occurs."""

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
    """The status and body of the response.  midway: awaited after its headers, before its body is read."""
    async with run.http.post(run.url + way.path, json=way.body) as response:
        if midway is not None:
            await midway
        return response.status, await response.text()


def check_error(way: Way, text: str, code: str) -> None:
    """Check that the error has the form of its dialect, and this code where the dialect has codes."""
    error = json.loads(text)["error"]
    assert isinstance(error, str) if way.native else error["code"] == code


def check_broken_off(way: Way, text: str) -> None:
    """Check that the stream began, ended with an error, and has no sign of a regular end."""
    if way.native:
        lines = [json.loads(line) for line in text.splitlines()]
        assert "error" in lines[-1] and not any(line.get("done") for line in lines) and len(lines) > 1
    else:
        stream = Stream(text)
        assert stream.broken["message"] and len(stream.chunks) > 1


def fault_at(fault: Fault, way: Way) -> Fault:
    return replace(fault, path=way.faulty)


async def check_nothing_left(run: Running) -> None:
    """Check that no slot, queue place, task or shared generation is left, and that nothing was cached."""
    pool = run.server.live.pipeline.value.upstreams["local"]
    async with asyncio.timeout(30):
        while (  # noqa: ASYNC110  (there is no event)
            any(one.busy for one in pool.states) or len(pool.queue.order) or run.server.services.state["cache flights"]
        ):
            await asyncio.sleep(0.01)
    names = [task.get_name() for task in run.server.services.background.tasks]
    assert not [name for name in names if "shared" in name]
    kept = await (await run.http.get(f"{run.url}/api/cache/stats")).json()
    assert kept["entries"] == 0


async def check_recovered(run: Running, way: Way) -> None:
    """Check that the next call is answered and cached, and the one after it comes from the cache."""
    run.ollama.faults.clear()
    for told in ("miss", "hit"):
        async with run.http.post(run.url + way.path, json=way.body) as response:
            assert (response.status, response.headers["x-gemmapy-cache"]) == (200, told), await response.text()
            text = await response.text()
    if way.stream:
        assert text.endswith("data: [DONE]\n\n") or json.loads(text.splitlines()[-1])["done"]


# Embeddings come as one document of a known length: an early end is like a reset, and it has no lines.
LINES: Final = ("end", "a long line")
CASES: Final = [(way, fault) for way in WAYS for fault in BEFORE if way != "embedding" or fault not in LINES]


@pytest.mark.parametrize(("way", "fault"), CASES)
async def test_a_fault_before_the_first_event(start: Start, late: Late, way: str, fault: str) -> None:
    given, status, code = BEFORE[fault]
    asked, loaded = WAYS[way], asyncio.Event()
    if given.kind == "slow_load":
        given = replace(given, until=loaded)
    async with start(CONFIG + UPSTREAM, Simulator(faults=[fault_at(given, asked)])) as run:
        asking = asyncio.ensure_future(ask(run, asked))
        if code == "upstream_timeout":
            await run.ollama.until(lambda: not run.ollama.faults)
            await late(run)
        found, text = await asking
        assert found == status, text
        check_error(asked, text, code)
        await check_nothing_left(run)
        loaded.set()
        await check_recovered(run, asked)


@pytest.mark.parametrize("fault", MIDWAY)
@pytest.mark.parametrize("way", [name for name, way in WAYS.items() if way.stream])
async def test_a_fault_in_the_middle_of_a_stream(start: Start, late: Late, way: str, fault: str) -> None:
    asked = WAYS[way]
    async with start(CONFIG + UPSTREAM, Simulator(faults=[fault_at(MIDWAY[fault], asked)], delay=0.005)) as run:
        found, text = await ask(run, asked, late(run) if fault == "stall" else None)
        assert found == 200
        check_broken_off(asked, text)
        await check_nothing_left(run)
        await check_recovered(run, asked)


@pytest.mark.parametrize("way", WAYS)
async def test_a_refused_connection_and_recovery_once_the_host_is_up(start: Start, way: str) -> None:
    url, asked = dead_url(), WAYS[way]
    async with start(CONFIG + UPSTREAM.replace("$OLLAMA", url)) as run:
        found, text = await ask(run, asked)
        assert found == 502 and "refused" in text
        await check_nothing_left(run)
        async with running(Simulator(), port=int(url.rpartition(":")[2])):
            await check_recovered(run, asked)


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_disconnects_leaves_nothing_behind(start: Start, way: str) -> None:
    asked = WAYS[way]
    async with start(CONFIG + UPSTREAM, Simulator(faults=[fault_at(Fault("stall"), asked)])) as run:
        task = asyncio.ensure_future(ask(run, asked))
        await run.ollama.until(lambda: run.ollama.running == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await run.ollama.until_abandoned(1)
        await check_nothing_left(run)
        await check_recovered(run, asked)


async def test_concurrent_calls_of_all_kinds_leave_nothing_behind(start: Start) -> None:
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
