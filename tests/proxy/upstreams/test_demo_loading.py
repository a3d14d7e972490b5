"""The simulator loads, queues and evicts models as Ollama does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from proxy.upstreams.demo import Fault, Simulator

from .asking import Json, asking, user

HI: Json = {"model": "demo", "messages": user("Hi")}


async def test_empty_messages_load_and_zero_keep_alive_unloads() -> None:
    simulator = Simulator()
    async with asking(simulator) as client:
        reasons = []
        for path in ("/api/chat", "/api/generate"):
            for more in ({}, {"keep_alive": 0}):
                lines = await client.lines(path, model="demo", **more)
                reasons.append((len(lines), lines[0]["done"], lines[0]["done_reason"]))
                reasons.append((len((await client.get("/api/ps"))["models"]), True, "loaded"))
    loaded = [(1, True, "load"), (1, True, "loaded"), (1, True, "unload"), (0, True, "loaded")]
    assert reasons == loaded * 2
    assert (simulator.loads, simulator.started) == (2, 0)


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("keep_alive", "seconds"),
    [(None, 300), (10, 10), ("1h30m", 5400), ("-1s", None), (-1, None), ("1.5s", 1.5)],
)
async def test_keep_alive_says_how_long_a_model_stays(keep_alive: Any, seconds: float | None) -> None:
    clock = Clock()
    async with asking(Simulator(clock=clock)) as client:
        await client.ask("/api/chat", **HI, keep_alive=keep_alive)
        clock.now += (seconds or 1e9) - 0.1
        assert len((await client.get("/api/ps"))["models"]) == 1
        clock.now += 0.2
        assert len((await client.get("/api/ps"))["models"]) == (0 if seconds else 1)


async def test_ps_tells_the_context_and_when_the_model_goes() -> None:
    async with asking(Simulator(clock=Clock())) as client:
        await client.ask("/api/chat", **HI, options={"num_ctx": 1024})
        entry = (await client.get("/api/ps"))["models"][0]
    assert entry["context_length"] == 1024
    assert entry["expires_at"] == "1970-01-12T13:51:40.000000000Z"


@pytest.mark.parametrize(
    "other",
    [
        *({"options": {name: 3}} for name in ("num_ctx", "num_batch", "num_gpu", "num_thread")),
        {"options": {"draft_num_predict": 3}},
        {"options": {"main_gpu": 1}},
        {"options": {"use_mmap": False}},
        {"shift": False},
    ],
)
async def test_other_load_time_options_load_the_model_anew(other: dict[str, Any]) -> None:
    simulator = Simulator()
    async with asking(simulator) as client:
        for more in ({}, {"options": {"temperature": 0.1, "num_gpu": -1}}, {"shift": True}, other, other):
            await client.ask("/api/chat", **HI | more)
    assert (simulator.loads, simulator.reloads) == (1, 1)


async def test_the_model_used_longest_ago_makes_room() -> None:
    simulator = Simulator(max_loaded=2)
    async with asking(simulator) as client:
        for model in ("demo", "demo-rendered", "demo", "demo-thinking"):
            await client.ask("/api/chat", model=model)
        names = {entry["name"] for entry in (await client.get("/api/ps"))["models"]}
    assert names == {"demo:latest", "demo-thinking:latest"}
    assert (simulator.loads, simulator.evictions) == (3, 1)


Answer = asyncio.Task[tuple[int, Any]]


def received(simulator: Simulator, count: int) -> bool:
    return simulator.calls["/api/chat"] == count


@asynccontextmanager
async def begun(simulator: Simulator, count: int) -> AsyncIterator[list[Answer]]:
    """Requests sent one after the other, each received before the next is sent."""
    async with asking(simulator) as client, asyncio.TaskGroup() as tasks:
        requests: list[Answer] = []
        for number in range(1, count + 1):
            requests.append(tasks.create_task(client.ask("/api/chat", **HI)))
            await simulator.until(partial(received, simulator, number))
        yield requests


async def test_a_client_that_leaves_during_a_load_takes_it_along_for_all() -> None:
    simulator = Simulator(load_time=5.0)
    async with begun(simulator, 2) as (first, second):
        first.cancel()
        assert await second == (499, {"error": "request canceled"})
        await simulator.until_abandoned()
    assert (simulator.load_aborts, simulator.started, simulator.loads) == (1, 0, 1)


async def test_after_an_aborted_load_the_next_request_loads_again() -> None:
    simulator = Simulator(faults=[Fault("slow_load")])
    async with begun(simulator, 1) as (first,):
        await simulator.until(lambda: simulator.loads == 1)
        first.cancel()
        await simulator.until_abandoned()
    async with asking(simulator) as client:
        assert (await client.ask("/api/chat", **HI))[0] == 200
    assert (simulator.loads, simulator.load_aborts) == (2, 1)


async def test_a_reload_waits_for_the_answers_under_way() -> None:
    simulator = Simulator(faults=[Fault("stall", until=(answered := asyncio.Event()))])
    async with begun(simulator, 1) as (first,), asking(simulator) as client:
        await simulator.until(lambda: simulator.running == 1)
        reloading = asyncio.ensure_future(client.ask("/api/chat", **HI, shift=False))
        await simulator.until(lambda: simulator.reloads == 1)
        assert simulator.started == 1 and not first.done()
        answered.set()
        assert [(await one)[0] for one in (first, reloading)] == [200, 200]


async def test_a_full_queue_refuses_what_needs_a_load() -> None:
    simulator = Simulator(max_queue=1, faults=[Fault("slow_load", until=(loaded := asyncio.Event()))])
    async with begun(simulator, 3) as requests:
        busy = (await requests[2])[1]["error"]
        loaded.set()
        statuses = [status for status, _ in await asyncio.gather(*requests)]
    assert statuses == [200, 200, 503] and simulator.loads == 1
    assert busy == "server busy, please try again.  maximum pending requests exceeded"


async def test_a_slow_load_is_slow_even_if_the_model_was_there() -> None:
    simulator = Simulator()
    async with asking(simulator) as client:
        await client.ask("/api/chat", **HI)
        simulator.faults.append(Fault("slow_load", seconds=0.02))
        _, document = await client.ask("/api/chat", **HI)
    assert document["load_duration"] >= 20_000_000


async def test_one_slot_answers_one_request_at_a_time() -> None:
    simulator = Simulator(parallel=1, faults=[Fault("stall", until=(answered := asyncio.Event()))])
    async with begun(simulator, 2) as requests:
        await simulator.until(lambda: simulator.running == 1)
        assert (simulator.started, simulator.running) == (1, 1)
        answered.set()
        assert [status for status, _ in await asyncio.gather(*requests)] == [200, 200]
