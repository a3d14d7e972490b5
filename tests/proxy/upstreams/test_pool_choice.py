"""Which host of a pool takes a call, and which call of the line goes first."""

from __future__ import annotations

import asyncio
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import pytest

from proxy.types import Call, Chat
from proxy.upstreams.demo import CATALOGUE, Fault, Model, Simulator, running
from proxy.upstreams.host_state import HostState
from proxy.upstreams.pool import Pool
from proxy.upstreams.waiting_queue import RoundRobin, WaitingCall, WaitingQueue
from tests.clocks import put_forward
from tests.conftest import Running, Start
from tests.contracts.test_stores import Watch
from tests.proxy.upstreams.test_pool import answers, held, pooled, until_waiting
from tests.servers import redis_server
from tests.whole.asking import error_of, streamed, user

OTHER = Model("other:latest", frozenset({"completion"}), context=4096)
BOTH = (*CATALOGUE, OTHER)


async def warmed(run: Running) -> Pool:
    """The pool, whose every host has loaded the model."""
    pool = run.server.live.pipeline.value.upstreams["pool"]
    for url in pool.members:
        await (await run.http.post(f"{url}/api/chat", json={"model": "demo", "messages": []})).read()
    await pool.watch.poll()
    return pool


async def test_a_conversation_stays_where_its_beginning_was_read(start: Start) -> None:
    hosts = [Simulator() for _ in range(4)]
    async with pooled(start, hosts) as run:
        places: dict[str, set[str]] = {}
        for turn in range(3):
            for name in ("ann", "bob", "eve", "kim"):
                messages = user(f"I am {name}")
                for _ in range(turn):
                    messages += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "and now?"}]
                response = await run.chat(messages=messages)
                places.setdefault(name, set()).add(response.headers["x-gemmapy-upstream"])
    assert [len(found) for found in places.values()] == [1, 1, 1, 1]


async def test_but_not_where_that_host_has_much_more_to_do(start: Start) -> None:
    hosts, go = held(2)
    async with pooled(start, hosts) as run:
        await warmed(run)
        go.set()
        await (await run.chat()).read()
        go.clear()
        before = [answers(one) for one in hosts]
        streams = await asyncio.gather(*(run.chat(stream=True) for _ in range(10)))
        fewer, more = sorted(answers(one) - had for one, had in zip(hosts, before, strict=True))
        assert 0 < more - fewer <= 2, "two calls more, and no more than that"
        go.set()
        for stream in streams:
            await stream.read()


async def test_a_host_that_fails_again_and_again_is_left_alone_until_it_has_rested(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstreams.host_state.FIRST_REST", 3600.0)
    monkeypatch.setattr("proxy.upstreams.host_state.LONGEST_REST", 3600.0)
    steady, failing = Simulator(), Simulator()
    async with pooled(start, [steady, failing]) as run:
        pool, clock = await warmed(run), run.server.services.clock
        state = pool.states[1]
        failing.faults.extend([Fault("status")] * 3)
        numbers = count()
        async with asyncio.timeout(30):
            while state.failures < 3:
                put_forward(clock, 3600.0)
                await (await run.chat(messages=user(f"again {next(numbers)}"))).read()
        had = answers(failing)
        assert [(await run.chat(messages=user(f"now {n}"))).status for n in range(5)] == [200] * 5
        assert answers(failing) == had and state.failures == 3
        put_forward(clock, 3600.0)
        async with asyncio.timeout(30):
            while state.failures:
                assert (await run.chat(messages=user(f"well {next(numbers)}"))).status == 200
        told = await (await run.http.get(f"{run.url}/api/hosts")).json()
    states = [host["state"] for host in told["upstreams"]["pool"]["hosts"]]
    assert states == ["in", "starting"]


async def test_where_every_host_cools_down_the_last_one_is_asked_all_the_same(start: Start) -> None:
    hosts = [Simulator(), Simulator()]
    async with pooled(start, hosts) as run:
        pool = await warmed(run)
        for one in pool.states:
            for _ in range(3):
                one.record_failure(run.server.services.clock.monotonic())
        assert (await run.chat()).status == 200


LIMITED = "plugins: {timeouts: {first_event: 0.2}, fallback: {FALLBACK}}\nchains: {chat: [CHAIN]}"
HURRIED = {
    "timeouts": LIMITED.replace("FALLBACK", "").replace("CHAIN", "timeouts"),
    "fallback": LIMITED.replace("FALLBACK", "first_token: 0.2, models: {demo: [other]}").replace("CHAIN", "fallback"),
}


async def streams(run: Running, count: int) -> list[str]:
    """What became of so many calls, one after the other: a status, or that another model answered."""
    found = []
    for number in range(count):
        response = await run.chat(stream=True, messages=user(f"question {number}"))
        await response.read()
        found.append("other" if "x-gemmapy-fallback" in response.headers else str(response.status))
    return found


@pytest.mark.parametrize("limit", HURRIED)
async def test_a_host_that_hangs_is_a_host_that_fails(start: Start, limit: str) -> None:
    """Though it says that it is there, and has the model loaded: else it would have its share of all calls."""
    hosts = [Simulator(), Simulator()]
    text = HURRIED[limit] + "\nmodels: {other: {alias: demo-rendered}}"
    async with pooled(start, hosts, text) as run:
        pool = await warmed(run)
        hosts[0].faults.append(Fault("stall", seconds=2, times=100, path="/api/chat"))
        if limit == "timeouts":
            assert sorted(await streams(run, 8)) == ["200"] * 7 + ["504"]
        else:  # the other model's turn may come at the host that hangs, too
            assert (await streams(run, 8)).count("200") >= 6
        assert [one.failures > 0 for one in pool.states] == [True, False]


@pytest.mark.parametrize("kind", ["reset", "error_line", "stall"])
async def test_a_host_whose_streams_break_off_midway_is_one_that_fails(start: Start, kind: Any) -> None:
    hosts = [Simulator(), Simulator()]
    text = LIMITED.replace("first_event", "between_events").replace("FALLBACK", "").replace("CHAIN", "timeouts")
    async with pooled(start, hosts, text) as run:
        pool = await warmed(run)
        hosts[0].faults.append(Fault(kind, after=3, seconds=2, times=100, path="/api/chat"))
        dones = []
        for number in range(8):
            text = await (await run.chat(stream=True, messages=user(f"question {number}"))).text()
            dones.append(text.endswith("[DONE]\n\n"))
        assert dones.count(False) == 1, dones
        for _ in range(2):
            pool.states[0].rests_until = 0.0  # it has rested, and the other one has more to do
            pool.states[1].busy += 10
            assert "error" in await (await run.chat(stream=True)).text()
            pool.states[1].busy -= 10
        assert pool.states[0].state(run.server.services.clock.monotonic()) == "cooling"


async def test_a_stream_that_only_waited_in_line_says_nothing_of_its_host(start: Start) -> None:
    hosts = [Simulator(delay=0.03), Simulator(delay=0.03)]
    async with pooled(start, hosts, HURRIED["timeouts"], slots=1) as run:
        pool = await warmed(run)
        found = await asyncio.gather(*(run.chat(stream=True, messages=user(f"{number}")) for number in range(8)))
        assert {one.status for one in found} == {200, 504}
        assert [one.failures for one in pool.states] == [0, 0]


async def test_a_load_that_takes_longer_than_a_stream_may_is_no_failure_of_the_host(start: Start) -> None:
    hosts = [Simulator(load_time=5), Simulator(load_time=5)]
    async with pooled(start, hosts, HURRIED["timeouts"]) as run:
        assert await streams(run, 2) == ["504", "504"]
        pool = run.server.live.pipeline.value.upstreams["pool"]
        assert [one.failures for one in pool.states] == [0, 0]


async def test_a_client_that_does_not_wait_says_nothing_of_the_host(start: Start) -> None:
    hosts = [Simulator(), Simulator()]
    async with pooled(start, hosts, HURRIED["timeouts"]) as run:
        pool = await warmed(run)
        for one in hosts:
            one.faults.append(Fault("stall", seconds=2, path="/api/chat"))
        leaving = asyncio.ensure_future(run.chat(stream=True))
        await asyncio.sleep(0.05)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        async with asyncio.timeout(5):
            while any(one.busy for one in pool.states):  # noqa: ASYNC110  (a slot tells nobody that it is free)
                await asyncio.sleep(0.005)
        assert [one.failures for one in pool.states] == [0, 0]


async def test_servers_tell_each_other_of_a_host_that_cools_down(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstreams.cooldown_sharing.LOOK_UP_EVERY", 0.02)
    monkeypatch.setattr("proxy.upstreams.host_state.FIRST_REST", 3600.0)
    monkeypatch.setattr("proxy.upstreams.host_state.LONGEST_REST", 3600.0)
    monkeypatch.setattr("proxy.upstreams.cooldown_sharing.LONGEST_REST", 3600.0)
    async with redis_server(tmp_path) as redis, running(Simulator()) as first, running(Simulator()) as second:
        stores = f"stores: {{both: {{redis: '{redis.url}', timeout: 30}}}}\nchains: {{chat: []}}\n"
        async with (
            pooled(start, [first, second], stores, share="both") as one,
            pooled(start, [first, second], stores, share="both") as other,
        ):
            mine, theirs = (run.server.live.pipeline.value.upstreams["pool"] for run in (one, other))
            for _ in range(3):
                mine.tracker.record_failure(mine.states[0])
            async with asyncio.timeout(30):
                while theirs.states[0].failures < 3:
                    assert (await other.chat()).status == 200
            assert theirs.states[0].state(other.server.services.clock.monotonic()) == "cooling"
            mine.states[0].trial = True
            mine.tracker.record_success(mine.states[0])
            async with asyncio.timeout(30):
                while theirs.states[0].failures:
                    assert (await other.chat()).status == 200


async def test_a_store_that_is_away_changes_nothing_else(start: Start) -> None:
    stores = "stores: {gone: {redis: 'redis://127.0.0.1:9/0'}}\nchains: {chat: []}\n"
    async with pooled(start, [Simulator(), Simulator()], stores, share="gone") as run:
        pool = run.server.live.pipeline.value.upstreams["pool"]
        for _ in range(3):
            pool.tracker.record_failure(pool.states[0])
        assert [(await run.chat()).status for _ in range(3)] == [200] * 3
        pool.states[0].trial = True
        pool.tracker.record_success(pool.states[0])
        assert (await run.chat()).status == 200


async def asked_by_turns(start: Start, group: float) -> tuple[int, int]:
    """Loads at a host with room for one model, of 64 calls for two; and how many the line says it avoided."""
    ollama = Simulator(models=BOTH, max_loaded=1, parallel=1)
    async with pooled(start, [ollama], slots=1, line=f"{{group: {group}}}") as run:
        models = cycle(["demo", "other"])

        async def caller() -> None:
            for model in islice(models, 8):
                response = await run.chat(model=model)
                assert response.status == 200, await response.text()
                await response.read()

        await asyncio.gather(*(caller() for _ in range(8)))
        told = await (await run.http.get(f"{run.url}/api/hosts")).json()
    return ollama.loads, told["upstreams"]["pool"]["loads_avoided"]


async def test_calls_for_one_model_go_together_so_that_two_do_not_put_each_other_out(start: Start) -> None:
    apart, none = await asked_by_turns(start, 0)
    together, avoided = await asked_by_turns(start, 10)
    assert together * 3 < apart and none == 0
    assert avoided >= together


async def test_groups_stay_together_however_long_calls_have_waited() -> None:
    clock, loaded, loads = Watch(), "a", 0
    queue = WaitingQueue(RoundRobin(), clock)
    host = HostState("h")
    queue.pick = lambda model, tried, beginning: None if host.busy else host
    queue.warm = lambda state, model: model == loaded
    queue.group = 5.0
    waiting = [WaitingCall(Call(str(n), "chat", "ab"[n % 2], Chat(())), "ab"[n % 2]) for n in range(40)]
    host.busy = 1
    for one in waiting:
        queue.add_call(one)
    for _ in waiting:
        queue.release(host)
        (served,) = (one for one in waiting if one.ready.done() and one not in list(queue.order))
        waiting = [one for one in waiting if one is not served]
        loads += served.model != loaded
        loaded = served.model
        clock.now += 1.0  # each takes a second
        if not waiting:
            break
    assert loads <= 8


async def test_a_model_that_is_not_loaded_waits_no_longer_than_it_may(start: Start) -> None:
    ollama = Simulator(models=BOTH, max_loaded=1, parallel=1, delay=0.002)
    async with pooled(start, [ollama], slots=1, line="{group: 0.2}") as run:
        asked, served = asyncio.Event(), asyncio.Event()

        async def caller() -> None:
            while not served.is_set():
                await (await run.chat(model="demo")).read()
                asked.set()

        async def patient() -> None:
            await asked.wait()
            assert (await run.chat(model="other")).status == 200
            served.set()

        async with asyncio.timeout(60):
            await asyncio.gather(patient(), *(caller() for _ in range(4)))


async def test_an_unknown_store_is_a_problem_of_the_file(start: Start) -> None:
    with pytest.raises(Exception, match="no store is called 'nowhere'"):
        async with pooled(start, ["http://127.0.0.1:9"], share="nowhere"):
            pass


async def test_who_waited_is_told_how_long(start: Start) -> None:
    hosts, go = held(1)
    async with pooled(start, hosts, slots=1) as run:
        first = await run.chat(stream=True)
        second = asyncio.ensure_future(run.chat(stream=True, messages=user("me too")))
        await until_waiting(run, 1)
        go.set()
        assert (await streamed(first)).done
        response = await second
        assert float(response.headers["x-gemmapy-queue-ms"]) > 0
        assert (await streamed(response)).done
        assert "x-gemmapy-queue-ms" not in first.headers


async def test_only_admins_see_how_hosts_stand(start: Start) -> None:
    async with pooled(start, [Simulator()], "keys: {ann: a-key}\nchains: {chat: []}\n") as run:
        response = await run.http.get(f"{run.url}/api/hosts", headers={"Authorization": "Bearer a-key"})
        assert (await error_of(response, 403))["code"] == "insufficient_permissions"
