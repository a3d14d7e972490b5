"""The counts at the end are the sums of what each call reported, however the calls ended."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.announcements import KEPT, CallEnded
from proxy.config import Strict
from proxy.host import Host
from proxy.meter import metered
from proxy.types import Call, Handler, Reply
from proxy.upstreams.demo import Fault, Simulator
from tests.conftest import Running, Start
from tests.plugins.limits.asking import limits, until_used, used
from tests.servers import RedisServer, redis_server
from tests.whole.asking import user

TOLD: list[CallEnded] = []
Way = Literal["whole", "stream", "left", "cut", "failed", "unknown", "again"]
Asked = tuple[Way, int, int]
"""How a call ends, the number of words in its prompt, and the maximum of tokens in its answer."""
ASKED = st.tuples(
    st.sampled_from(["whole", "stream", "left", "cut", "failed", "unknown", "again"]),
    st.integers(1, 30),
    st.integers(1, 40),
)
RULES = (
    "{per: all, requests_per_minute: 100000, tokens_per_minute: 10000000, at_once: 1000, tokens_per_day: 1000000000}",
    "{per: [caller, model], tokens_per_minute: 10000000}",
)


class Hearing:
    """An outer plugin that hears of ended calls, like the record of calls."""

    class Settings(Strict):
        deaf: bool = False

    def __init__(self, settings: Settings, host: Host) -> None:
        self.host = host
        self.deaf = settings.deaf
        host.on(CallEnded, self.hear)

    def hear(self, ended: CallEnded) -> None:
        TOLD.append(ended)
        if self.deaf:
            raise LookupError("a fault of a listener")

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        return await metered(call, call_next, self.host)


def config(url: str, store: str = "", deaf: bool = False) -> str:
    text = limits(*RULES, store=store, chain="hearing, limits, cache")
    hearing = f"plugins: {{hearing: {{use: '{__name__}:Hearing', deaf: {str(deaf).lower()}}}, "
    return f"database: {{url: '{url}'}}\n" + text.replace("plugins: {", hearing, 1)


async def one(run: Running, asked: Asked) -> None:
    way, words, most = asked
    body: dict[str, Any] = {"model": "demo", "messages": user("word " * words), "max_tokens": most, "seed": 1}
    if way == "again":
        body["messages"] = user("the same")
    elif way in ("cut", "failed"):
        run.ollama.faults.append(Fault("eof", after=3) if way == "cut" else Fault("status"))
        body["stream"] = way == "cut"
    elif way == "unknown":
        body["model"] = "nobody"
    elif way in ("stream", "left"):
        body["stream"] = True
    response = await run.http.post(f"{run.url}/v1/chat/completions", json=body, headers={"x-request-id": f"{words}"})
    if way == "left":
        await response.content.readany()
        response.close()
    else:
        await response.read()


def taken() -> int:
    return sum((one.prompt_tokens or 0) + (one.completion_tokens or 0) for one in TOLD if one.cache not in KEPT)


async def check_sums(run: Running, before: int, asked: list[Asked]) -> None:
    TOLD[:] = []
    await asyncio.gather(*(one(run, each) for each in asked))
    await until_used(run, "at_once", 0)
    assert len(TOLD) == len(asked)
    await until_used(run, "tokens_per_day", before + taken())
    assert await used(run, "tokens_per_minute") == before + taken()


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest, tmp_path: Any) -> Any:
    if request.param == "memory":
        yield ""
        return
    server: RedisServer
    async with redis_server(tmp_path) as server:
        yield server.url


def drawn() -> list[list[Asked]]:
    examples: list[list[Asked]] = []

    @settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(ASKED, min_size=1, max_size=12))
    def draw(asked: list[Asked]) -> None:
        examples.append(asked)

    draw()
    return examples


async def test_settled_reservations_add_up_to_what_calls_used(start: Start, store: str, tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path / 'records.db'}"
    examples = drawn()
    total = 0
    async with start(config(url, store), Simulator(delay=0.001)) as run:
        for asked in examples:
            await check_sums(run, total, asked)
            total += taken()
    async with start(config(url, store)) as run:  # and in the records
        assert await used(run, "tokens_per_day") == total


async def test_an_exception_in_another_listener_leaves_no_reservation(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path / 'records.db'}", deaf=True)) as run:
        for way in ("stream", "failed", "whole", "left"):
            await one(run, (way, 1, 5))
        await until_used(run, "at_once", 0)
