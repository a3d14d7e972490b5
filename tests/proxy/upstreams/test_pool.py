"""Several simulated hosts behind one running server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest

from proxy.upstreams.demo import CATALOGUE, Fault, Simulator, running
from tests.conftest import ASK, BARE, HI, Running, Start
from tests.servers import free_port
from tests.whole.asking import dead_url, error_of, streamed, user, whole

WITHOUT_DEMO = [one for one in CATALOGUE if one.name != "demo:latest"]


@asynccontextmanager
async def pooled(
    start: Start, hosts: Sequence[Simulator | str], text: str = BARE, **upstream: Any
) -> AsyncIterator[Running]:
    """A server over these hosts, each a simulator or an address."""
    async with AsyncExitStack() as stack:
        urls = [one if isinstance(one, str) else await stack.enter_async_context(running(one)) for one in hosts]
        settings = ", ".join(f"{name}: {value}" for name, value in {"ollama": urls, **upstream}.items())
        run = await stack.enter_async_context(start(f"{text}\nupstreams: {{pool: {{{settings}}}}}\n"))
        yield run


def held(count: int, after: int = 1) -> tuple[list[Simulator], asyncio.Event]:
    """Hosts whose answers go on after so many lines when the event is set."""
    go = asyncio.Event()
    return [Simulator(parallel=64, faults=[Fault("stall", after, until=go, times=99)]) for _ in range(count)], go


def answers(ollama: Simulator) -> int:
    """Questions that this host was asked, loads not counted."""
    return sum(1 for one in ollama.seen if one.path == "/api/chat" and one.body["messages"])


async def test_calls_go_to_the_host_that_has_the_model_loaded(start: Start) -> None:
    cold, warm = Simulator(), Simulator()
    async with pooled(start, [cold, warm]) as run:
        first = await run.chat()
        for _ in range(6):
            assert (await run.chat()).headers["x-gemmapy-upstream"] == first.headers["x-gemmapy-upstream"]
    assert sorted((answers(cold), answers(warm))) == [0, 7]
    assert cold.loads + warm.loads == 1


async def test_the_least_busy_of_the_loaded_hosts_is_taken_and_among_equals_none_is_left_out(start: Start) -> None:
    hosts, go = held(4)
    async with pooled(start, hosts, slots=2) as run:
        replies = await asyncio.gather(*(run.chat(stream=True) for _ in range(8)))
        assert [answers(one) for one in hosts] == [2, 2, 2, 2]
        go.set()
        for reply in replies:
            assert (await streamed(reply)).done
        for number in range(4):
            assert (await run.chat(messages=user(f"another {number}"))).status == 200
        assert [answers(one) for one in hosts] == [3, 3, 3, 3]
    assert [one.loads for one in hosts] == [1, 1, 1, 1]


async def test_what_is_loaded_is_told_of_each_host_so_that_memory_adds_up(start: Start) -> None:
    hosts, go = held(2)
    async with pooled(start, hosts, slots=1) as run:
        replies = await asyncio.gather(*(run.chat(stream=True) for _ in range(2)))
        go.set()
        for reply in replies:
            await reply.read()
        told = (await whole(await run.http.get(f"{run.url}/api/ps")))["models"]
        each = [(await whole(await run.http.get(f"{url}/api/ps")))["models"] for url in urls(run)]
    assert [one["name"] for one in told] == ["demo:latest"] * 2
    assert told == [entry for one in each for entry in one]


def urls(run: Running) -> Sequence[str]:
    return run.server.config.upstreams["pool"].urls


async def test_a_busy_host_does_not_keep_others_idle_where_no_slots_are_said(start: Start) -> None:
    hosts, go = held(2)
    async with pooled(start, hosts) as run:
        replies = await asyncio.gather(*(run.chat(stream=True) for _ in range(24)))
        assert min(answers(one) for one in hosts) >= 8
        go.set()
        for reply in replies:
            await reply.read()


async def test_a_call_goes_only_to_hosts_that_have_its_model(start: Start) -> None:
    without, having = Simulator(models=WITHOUT_DEMO), Simulator()
    async with pooled(start, [without, having], slots=1) as run:
        assert [(await run.chat()).status for _ in range(4)] == [200] * 4
        assert (await run.chat(model="demo-thinking")).status == 200
        error = await error_of(await run.chat(model="nobody"), 404)
        models = await (await run.http.get(f"{run.url}/v1/models")).json()
    assert error["code"] == "model_not_found"
    assert (answers(without), answers(having)) == (1, 4) or answers(having) == 5
    assert len(models["data"]) == len(CATALOGUE)


async def test_a_model_that_a_host_has_lost_is_asked_of_another(start: Start) -> None:
    one, other = Simulator(), Simulator()
    async with pooled(start, [one, other]) as run:
        first = (await run.chat()).headers["x-gemmapy-upstream"]
        gone = await run.http.request(
            "DELETE", f"http://{first.removeprefix('pool/')}/api/delete", json={"model": "demo"}
        )
        assert gone.status == 200
        again = await run.chat()
        assert again.status == 200 and again.headers["x-gemmapy-upstream"] != first


@pytest.mark.parametrize("stream", [False, True])
async def test_a_host_that_refuses_connections_costs_no_call(
    start: Start, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ollama = Simulator()
    with caplog.at_level(logging.WARNING, "proxy.upstreams.watch"):
        async with pooled(start, [dead_url(), ollama], slots=8) as run:
            assert {(await run.chat(stream=stream)).status for _ in range(8)} == {200}
            assert (await run.embed()).status == 200
    assert len([text for text in caplog.messages if "gets no calls" in text]) == 1


async def test_a_host_that_dies_is_left_out_and_let_back_once_it_answers(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstreams.watch.PROBE", 0.02)
    (steady, dying), go = held(2)
    async with AsyncExitStack() as life:
        url = await life.enter_async_context(running(dying, port=free_port()))
        async with pooled(start, [steady, url], slots=1) as run:
            pool = run.server.live.pipeline.value.upstreams["pool"]
            asking = [asyncio.ensure_future(run.chat()) for _ in range(2)]
            await dying.until(lambda: answers(dying) == 1)
            go.set()
            await asyncio.gather(*asking)
            await life.aclose()
            for _ in range(4):
                assert (await run.chat()).status == 200
            assert [one.out for one in pool.states] == [False, True]
            async with running(Simulator(), port=int(url.rpartition(":")[2])):
                async with asyncio.timeout(30):
                    while pool.states[1].out:  # noqa: ASYNC110  (only the probe tells, and it tells nobody)
                        await asyncio.sleep(0.01)
                assert {(await run.chat()).status for _ in range(4)} == {200}


async def test_the_only_host_is_never_out(start: Start) -> None:
    url = dead_url()
    async with start(f"{BARE}\nupstreams: {{pool: {{ollama: ['{url}']}}}}\n") as run:
        assert (await error_of(await run.chat(), 502))["code"] == "upstream_connect"
        async with running(Simulator(), port=int(url.rpartition(":")[2])):
            assert (await run.chat()).status == 200


async def test_when_no_host_can_be_reached_a_call_says_so_at_once(start: Start) -> None:
    async with pooled(start, [dead_url(), dead_url()]) as run:
        async with asyncio.timeout(10):
            assert (await error_of(await run.chat(), 502))["code"] == "upstream_connect"


async def test_a_host_that_hangs_does_not_hold_up_the_others(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.upstreams.watch.PATIENCE", 0.05)
    left = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        left.set()

    deaf = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with deaf, asyncio.timeout(10):
        async with pooled(start, [f"http://127.0.0.1:{deaf.sockets[0].getsockname()[1]}", Simulator()]) as run:
            assert (await run.chat()).status == 200
        await left.wait()


# --- slots and the line ------------------------------------------------------------------------------


async def test_no_host_works_on_more_calls_than_it_has_slots(start: Start) -> None:
    most = [0, 0]

    def say(place: int, body: object) -> None:
        most[place] = max(most[place], hosts[place].running)

    go = asyncio.Event()
    faults = [Fault("stall", until=go, times=3)]
    hosts = [Simulator(parallel=64, faults=faults, say=partial(say, place)) for place in range(2)]
    async with pooled(start, hosts, slots=3) as run:

        async def one(stream: bool) -> None:
            response = await run.chat(stream=stream)
            assert response.status == 200
            await response.read()

        asking = [asyncio.ensure_future(one(number % 2 == 0)) for number in range(40)]
        for one_host in hosts:
            await one_host.until(lambda: [host.running for host in hosts] == [3, 3])
        await until_waiting(run, 34)
        go.set()
        await asyncio.gather(*asking)
        pool = run.server.live.pipeline.value.upstreams["pool"]
        assert [one.busy for one in pool.states] == [0, 0] and len(pool.queue.order) == 0
    assert most == [3, 3]


async def test_a_full_line_is_told_with_the_time_to_come_back(start: Start) -> None:
    hosts, go = held(1)
    async with pooled(start, hosts, slots=1, line="{most: 2, wait: 300}") as run:
        first = await run.chat(stream=True)
        waiting = [asyncio.ensure_future(run.chat()) for _ in range(2)]
        await until_waiting(run, 2)
        refused = await run.chat()
        error = await error_of(refused, 429)
        assert (error["code"], error["type"]) == ("queue_full", "rate_limit_error")
        assert int(refused.headers["retry-after"]) >= 1 and int(refused.headers["retry-after-ms"]) >= 1000
        go.set()
        assert (await streamed(first)).done
        assert {(await one).status for one in waiting} == {200}


async def test_a_line_is_full_also_of_calls_by_one_id(start: Start) -> None:
    hosts, go = held(1)
    async with pooled(start, hosts, slots=1, line="{most: 2, wait: 300}") as run:

        async def one(number: int) -> int:
            body, named = {**ASK, "seed": number}, {"X-Request-Id": "mine"}
            return (await run.http.post(f"{run.url}/v1/chat/completions", json=body, headers=named)).status

        asking = [asyncio.ensure_future(one(number)) for number in range(6)]
        async with asyncio.timeout(30):
            while sum(one.done() for one in asking) < 3:  # those that are refused
                await asyncio.wait([one for one in asking if not one.done()], return_when=asyncio.FIRST_COMPLETED)
        go.set()
        assert sorted(await asyncio.gather(*asking)) == [200] * 3 + [429] * 3


async def test_a_call_waits_only_so_long(start: Start) -> None:
    hosts, go = held(1)
    async with pooled(start, hosts, slots=1, line="{wait: 0.05}") as run:
        first = await run.chat(stream=True)
        assert (await error_of(await run.chat(), 429))["code"] == "queue_timeout"
        go.set()
        assert (await streamed(first)).done
        async with asyncio.timeout(30):
            while run.server.live.pipeline.value.upstreams["pool"].states[0].busy:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        assert (await run.chat()).status == 200


async def test_a_client_that_leaves_gives_its_place_to_the_next(start: Start) -> None:
    hosts, go = held(1)
    async with pooled(start, hosts, slots=1) as run:
        first = await run.chat(stream=True)
        leaving, staying = asyncio.ensure_future(run.chat()), asyncio.ensure_future(run.chat())
        await until_waiting(run, 2)
        leaving.cancel()
        await until_waiting(run, 1)
        go.set()
        assert (await streamed(first)).done
        assert (await staying).status == 200


async def test_who_waits_is_told_how_many_stand_before(start: Start) -> None:
    text = BARE + "\nstreams: {heartbeat: 0.02}"
    hosts, go = held(1)
    async with pooled(start, hosts, text, slots=1) as run:
        first = await run.chat(stream=True)
        await hosts[0].until(lambda: hosts[0].running == 1)  # a heartbeat may begin its answer before that
        waiting = []
        for place in range(2):
            asking = asyncio.ensure_future(run.chat(stream=True))
            await until_waiting(run, place + 1)
            waiting.append(await asking)
            assert await waiting[place].content.readline() == f": waiting in line, {place} before\n".encode()
        go.set()
        assert "in line" not in "".join((await streamed(first)).comments)
        for one in waiting:
            assert b"[DONE]" in await one.read()


async def test_several_answers_never_wait_for_each_others_slots(start: Start) -> None:
    """Two callers with more answers than there are slots would hold some and wait for the rest for ever."""
    async with pooled(start, [Simulator(parallel=64)], slots=2) as run:
        async with asyncio.timeout(30):
            replies = await asyncio.gather(*(run.chat(n=4, stream=stream) for stream in (True, True, False, False)))
            for reply in replies[:2]:
                stream = await streamed(reply)
                assert stream.done and len(stream.finishes()) == 4
            for reply in replies[2:]:
                assert len((await whole(reply))["choices"]) == 4


async def test_those_who_wait_keep_their_places_over_a_reload(start: Start) -> None:
    hosts, go = held(1)
    async with pooled(start, hosts, slots=1) as run:
        first = await run.chat(stream=True)
        second = asyncio.ensure_future(run.chat())
        await until_waiting(run, 1)
        assert await run.server.reload()
        third = asyncio.ensure_future(run.chat())
        await until_waiting(run, 2)
        go.set()
        assert (await streamed(first)).done
        done, _ = await asyncio.wait([second, third], return_when=asyncio.FIRST_COMPLETED)
        assert done == {second}
        assert (await third).status == 200


async def test_a_call_that_fails_gives_its_slot_back(start: Start) -> None:
    faults = [Fault("status"), Fault("eof", after=2), Fault("reset")]
    async with pooled(start, [Simulator(faults=faults)], slots=1) as run:
        for _ in range(2):
            for stream in (False, True):
                await (await run.chat(stream=stream, messages=HI)).read()
        pool = run.server.live.pipeline.value.upstreams["pool"]
        assert [one.busy for one in pool.states] == [0]
        assert (await run.chat()).status == 200


async def until_waiting(run: Running, count: int) -> None:
    """Returns when that many calls stand in line."""
    queue = run.server.live.pipeline.value.upstreams["pool"].queue
    async with asyncio.timeout(30):
        while len(queue.order) != count:  # noqa: ASYNC110  (a line tells nobody who joins it)
            await asyncio.sleep(0.002)


async def test_callers_take_turns_so_that_none_starves_another(start: Start) -> None:
    text = BARE + "\nkeys: {many: m-key, few: f-key}"
    hosts, go = held(1)
    async with pooled(start, hosts, text, slots=1) as run:
        served: list[str] = []

        async def call(name: str) -> None:
            headers = {"Authorization": f"Bearer {name[0]}-key"}
            body = {"model": "demo", "messages": HI}
            response = await run.http.post(f"{run.url}/v1/chat/completions", json=body, headers=headers)
            assert response.status == 200
            served.append(name)

        many = [asyncio.ensure_future(call("many")) for _ in range(9)]
        await until_waiting(run, 8)
        few = [asyncio.ensure_future(call("few")) for _ in range(2)]
        await until_waiting(run, 10)
        go.set()
        await asyncio.gather(*many, *few)
    assert max(index for index, name in enumerate(served) if name == "few") <= 5, served
