"""What hosts, callers and reloads can do to a pool at the wrong moment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from proxy.clock import Clock
from proxy.errors import UpstreamError
from proxy.observer import NOBODY
from proxy.port import Port
from proxy.settings import Line as Settings
from proxy.types import Call, Chat, Reply
from proxy.upstreams.choices import MergedReplies
from proxy.upstreams.demo import Fault, Simulator, running
from proxy.upstreams.host_state import HostState
from proxy.upstreams.waiting_queue import RoundRobin, WaitingCall, WaitingQueue
from tests.clocks import jump, put_forward
from tests.conftest import ASK, BARE, Start
from tests.proxy.upstreams.test_pool import answers, held, pooled, until_waiting
from tests.whole.asking import dead_url, error_of, streamed, whole

SHUT = "plugins: {shut: {use: 'tests.whole.rigged:Shut'}}\nchains: {chat: [shut]}"


class FakeClock(Clock):
    """One that stands still until it is moved."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@asynccontextmanager
async def saying(status: int, delay: float = 0.0) -> AsyncIterator[str]:
    """The URL of a server that says the same to everything."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(delay)
        return web.json_response({"error": "no"}, status=status)

    runner = web.ServerRunner(web.Server(handle, handler_cancellation=True), shutdown_timeout=0)
    await runner.setup()
    await Port(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


# --- leaving at the wrong moment ---------------------------------------------------------------------


async def test_an_answer_that_begins_as_its_caller_leaves_is_closed() -> None:
    """Otherwise its host would keep a slot for it for ever."""
    begun, closed = [], []

    async def nothing() -> AsyncIterator[None]:
        return
        yield

    for lag in range(4):

        async def start() -> Reply:
            await asyncio.sleep(0)
            begun.append(1)
            return Reply.of(nothing()).on_close(lambda: closed.append(1))  # type: ignore[arg-type]

        merged = MergedReplies([start, start], 2, NOBODY)
        starting = asyncio.ensure_future(merged.started())
        for _ in range(lag):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await asyncio.gather(*merged.tasks, return_exceptions=True)
    assert begun and len(begun) == len(closed)


@pytest.mark.parametrize("n", [1, 2])
async def test_callers_that_leave_at_any_moment_leave_no_slot_behind(start: Start, n: int) -> None:
    async with pooled(start, [Simulator(delay=0.001, parallel=64)], slots=4) as run:

        async def leaving(after: float) -> None:
            task = asyncio.ensure_future(run.chat(n=n, stream=True))
            done, _ = await asyncio.wait([task], timeout=after)
            if done:
                task.result().close()
            task.cancel()

        for _ in range(4):
            await asyncio.gather(*(leaving(number / 1500) for number in range(24)))
        pool = run.server.live.pipeline.value.upstreams["pool"]
        async with asyncio.timeout(10):
            while pool.states[0].busy:  # noqa: ASYNC110  (a slot tells nobody that it is free)
                await asyncio.sleep(0.01)
        assert (await whole(await run.chat()))["choices"]


async def test_a_place_that_came_as_its_call_left_goes_to_the_next() -> None:
    queue, state = WaitingQueue(RoundRobin(), FakeClock()), HostState("http://one")
    queue.pick = lambda model, tried, beginning: state if state.busy < 1 else None
    state.busy = 1
    first, second = (asyncio.ensure_future(queue.acquire(waiting(name), Settings())) for name in ("a", "b"))
    await asyncio.sleep(0)
    queue.release(state)  # the first is served now, and has not heard of it
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert await asyncio.wait_for(second, 30) is state
    assert state.busy == 1 and len(queue.order) == 0


async def test_whoever_leaves_is_not_served_any_more() -> None:
    queue, state = WaitingQueue(RoundRobin(), FakeClock()), HostState("http://one", busy=1)
    queue.pick = lambda model, tried, beginning: state if state.busy < 1 else None
    first, second = (asyncio.ensure_future(queue.acquire(waiting(name), Settings())) for name in ("a", "b"))
    await asyncio.sleep(0)
    first.cancel()
    queue.release(state)
    assert await asyncio.wait_for(second, 30) is state
    await asyncio.gather(first, return_exceptions=True)
    assert state.busy == 1


async def test_a_refused_caller_is_told_how_fast_the_line_moves() -> None:
    clock = FakeClock()
    queue, state = WaitingQueue(RoundRobin(), clock), HostState("http://one", busy=1)
    queue.pick = lambda model, tried, beginning: state if state.busy < 1 else None
    tasks = [asyncio.ensure_future(queue.acquire(waiting(str(number)), Settings())) for number in range(61)]
    await asyncio.sleep(0)
    for _ in range(40):
        clock.now += 5
        queue.release(state)
        await asyncio.sleep(0)
    assert 55 <= queue.estimated_wait() <= 60, "twenty-one before it, five seconds each, and a minute at most"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def waiting(name: str) -> WaitingCall:
    return WaitingCall(Call(id=name, route="chat", model="m", ask=Chat(messages=())), "m:latest")


# --- more answers than places ------------------------------------------------------------------------


async def test_a_call_for_several_answers_takes_one_place_in_the_line(start: Start) -> None:
    async with pooled(start, [Simulator()], slots=1, line="{most: 1}") as run:
        assert len((await whole(await run.chat(n=6)))["choices"]) == 6


async def test_a_reload_gives_those_who_wait_what_it_allows(start: Start) -> None:
    (host,), go = held(1)
    async with running(host) as url:
        text = f"{BARE}\nupstreams: {{pool: {{ollama: '{url}', slots: SLOTS}}}}\n"
        async with start(text.replace("SLOTS", "1")) as run:
            first = await run.chat(stream=True)
            waiting = [asyncio.ensure_future(run.chat(stream=True)) for _ in range(3)]
            await until_waiting(run, 3)
            run.configure(text.replace("SLOTS", "8"))
            assert await run.server.reload()
            async with asyncio.timeout(30):
                answers = [await one for one in waiting]
            go.set()
            for answer in (first, *answers):
                assert (await streamed(answer)).done


@pytest.mark.parametrize("away", [False, True])
async def test_those_who_wait_over_a_reload_may_be_sent_to_a_host_that_is_new(start: Start, away: bool) -> None:
    (host,), go = held(1)
    async with running(host) as old, running(Simulator()) as new:
        text = f"{BARE}\nupstreams: {{pool: {{ollama: [HOSTS], slots: 1}}}}\n"
        async with start(text.replace("HOSTS", old)) as run:
            first = await run.chat(stream=True)
            waiting = [asyncio.ensure_future(run.chat()) for _ in range(3)]
            await until_waiting(run, 3)
            run.configure(text.replace("HOSTS", dead_url() if away else new))
            assert await run.server.reload()
            async with asyncio.timeout(30):
                answers = [await one for one in waiting]
            assert {answer.status for answer in answers} == {502 if away else 200}
            go.set()
            assert (await streamed(first)).done
            pool = run.server.live.pipeline.value.upstreams["pool"]
            assert [one.busy for one in pool.states] == [0], "and none holds its place for ever"
            assert (await run.chat()).status == (502 if away else 200)


async def test_a_configuration_that_cannot_be_opened_gives_those_who_wait_nothing(start: Start) -> None:
    other = Simulator()
    (host,), go = held(1)
    async with running(host) as url, running(other) as never:
        text = f"{BARE}\nupstreams: {{pool: {{ollama: [HOSTS], slots: SLOTS}}}}\n"
        async with start(text.replace("HOSTS", f"'{url}'").replace("SLOTS", "1")) as run:
            first = await run.chat(stream=True)
            waiting = [asyncio.ensure_future(run.chat()) for _ in range(3)]
            await until_waiting(run, 3)
            wrong = text.replace("HOSTS", f"'{url}', '{never}'").replace("SLOTS", "8").replace(BARE, SHUT)
            run.configure(wrong)
            assert not await run.server.reload()
            await asyncio.sleep(0)
            await until_waiting(run, 3)
            go.set()
            assert (await streamed(first)).done
            assert [(await one).status for one in waiting] == [200] * 3
    assert not answers(other)


async def test_a_host_that_was_out_among_others_is_not_out_as_the_only_one(start: Start) -> None:
    dead = dead_url()
    async with running(Simulator()) as url:
        text = f"{BARE}\nupstreams: {{pool: {{ollama: [HOSTS]}}}}\n"
        async with start(text.replace("HOSTS", f"'{url}', '{dead}'")) as run:
            assert {(await run.chat()).status for _ in range(4)} == {200}
            assert [one.out for one in run.server.live.pipeline.value.upstreams["pool"].states] == [False, True]
            run.configure(text.replace("HOSTS", f"'{dead}'"))
            assert await run.server.reload()
            assert (await run.chat()).status == 502
            hosts = await whole(await run.http.get(f"{run.url}/api/hosts"))
            assert hosts["upstreams"]["pool"]["hosts"][0]["state"] == "in"


# --- hosts that say no -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 404, 500, 508])
async def test_an_upstream_that_denies_its_list_takes_nothing_from_the_others(start: Start, status: int) -> None:
    async with saying(status) as bad, running(Simulator()) as good:
        for upstreams in (
            f"{{bad: {{openai: '{bad}/v1'}}, good: {{ollama: '{good}'}}}}",
            f"{{pool: {{ollama: ['{bad}', '{good}']}}}}",
        ):
            async with start(f"{BARE}\nupstreams: {upstreams}\n") as run:
                assert [(await run.chat()).status for _ in range(3)] == [200] * 3
                assert len((await whole(await run.http.get(f"{run.url}/v1/models")))["data"]) > 3
                assert (await error_of(await run.chat(model="nobody"), 404))["code"] == "model_not_found"


async def test_a_host_whose_probe_was_ended_before_it_began_is_probed_again(start: Start) -> None:
    async with pooled(start, [Simulator(), Simulator()]) as run:
        watch = run.server.live.pipeline.value.upstreams["pool"].watch
        one = watch.states[0]
        watch.take_out(one, UpstreamError("refused", "connect"))
        assert one.probe is not None
        one.probe.cancel()  # as a pool does whose configuration is replaced
        await asyncio.sleep(0)
        await watch.poll()
        async with asyncio.timeout(10):
            await asyncio.wait([one.probe])
        assert not one.out


async def test_a_host_that_fails_at_once_does_not_draw_all_calls(start: Start) -> None:
    bad = Simulator(faults=[Fault("status", times=1000)])
    good = Simulator()
    async with pooled(start, [bad, good]) as run:
        statuses = [(await run.chat()).status for _ in range(12)]
        assert statuses.count(502) <= 2 and answers(good) >= 10


async def test_one_that_has_recovered_is_asked_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.upstreams.host_state.FIRST_REST", 3600.0)
    monkeypatch.setattr("proxy.upstreams.host_state.LONGEST_REST", 3600.0)
    hosts, go = held(2)
    for host in hosts:
        host.faults.appendleft(Fault("status"))
    async with pooled(start, hosts, slots=1) as run:
        assert {(await run.chat()).status for _ in range(2)} == {502}
        put_forward(run.server.services.clock, 3601.0)
        replies = await asyncio.gather(run.chat(stream=True), run.chat(stream=True))
        assert {reply.status for reply in replies} == {200}
        assert len({reply.headers["x-gemmapy-upstream"] for reply in replies}) == 2
        go.set()


async def test_retries_go_to_another_host(start: Start) -> None:
    text = "plugins: {retry: {wait: 0, attempts: 2}}\nchains: {chat: [retry]}"
    bad, good = Simulator(faults=[Fault("status", times=1000)]), Simulator()
    async with pooled(start, [bad, good], text) as run:
        assert [(await run.chat()).status for _ in range(6)] == [200] * 6


async def test_readiness_does_not_wait_for_a_host_that_hangs(start: Start) -> None:
    async with saying(200, delay=3600) as hangs, running(Simulator()) as good:
        for upstreams in (
            f"{{pool: {{ollama: ['{hangs}', '{good}']}}}}",
            f"{{one: {{ollama: '{hangs}'}}, other: {{ollama: '{good}'}}}}",
        ):
            async with start(f"{BARE}\nupstreams: {upstreams}\n") as run, asyncio.timeout(20):
                assert (await run.http.get(f"{run.url}/readyz")).status == 200


async def test_models_of_one_upstream_do_not_wait_for_another_that_hangs(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstreams.host_client.SMALL_REQUEST", 0.3)
    monkeypatch.setattr("proxy.upstreams.model_list.PATIENCE", 0.02)
    monkeypatch.setattr("proxy.upstreams.catalogue.RECENT", 0.0)
    async with saying(200, delay=3600) as hangs, running(Simulator()) as good:
        text = f"{BARE}\nupstreams: {{one: {{ollama: '{hangs}'}}, other: {{ollama: '{good}'}}}}\n"
        async with start(text) as run:
            assert (await run.chat()).status == 200  # the first waits as long as a list may take
            monkeypatch.setattr("proxy.upstreams.host_client.SMALL_REQUEST", 3600.0)
            async with asyncio.timeout(30):
                assert (await run.chat()).status == 200


async def test_the_version_does_not_wait_for_an_upstream_that_hangs(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstreams.catalogue.PROBE_TIMEOUT", 40.0)
    monkeypatch.setattr("proxy.upstreams.host_client.SMALL_REQUEST", 3600.0)
    ollama = Simulator()
    async with saying(200, delay=3600) as hangs, running(ollama) as good:
        text = f"{BARE}\nupstreams: {{one: {{ollama: '{hangs}'}}, other: {{ollama: '{good}'}}}}\n"
        async with start(text) as run, asyncio.timeout(100):
            asking = asyncio.ensure_future(run.http.get(f"{run.url}/api/version"))
            await ollama.until(lambda: ollama.calls["/api/version"] > 0)
            for _ in range(50):  # turns of the event loop, until its answer has come
                await asyncio.sleep(0.001)
            jump(41)
            assert (await (await asking).json())["version"] == "0.33.0"


# --- proxies that lead to each other -----------------------------------------------------------------


@pytest.mark.parametrize("path", ["/readyz", "/api/version", "/api/ps", "/v1/models", "/api/tags"])
async def test_two_proxies_that_lead_to_each_other_ask_each_other_once(
    start: Start, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with start() as one, start() as other, aiohttp.ClientSession() as http:
        for run, to in ((one, other), (other, one)):
            run.configure(f"{BARE}\nupstreams: {{next: {{ollama: '{to.url}'}}}}\n")
            assert await run.server.reload()
        with caplog.at_level(logging.INFO, "gemmapy.requests"):
            async with asyncio.timeout(30), http.get(one.url + path) as response:
                if path == "/api/ps":
                    assert (await response.json())["models"] == [], "nothing is loaded on an upstream that is away"
                else:
                    assert response.status >= 500
            await asyncio.sleep(0.1)
        assert len([one for one in caplog.records if hasattr(one, "told")]) <= 8


# --- one who wants everything ------------------------------------------------------------------------


async def test_who_fills_the_line_gives_places_to_who_has_fewer(start: Start) -> None:
    """Else one caller with as many calls as may wait would have all others refused."""
    text = BARE + "\nkeys: {many: m-key, few: f-key}"
    async with pooled(start, [Simulator(delay=0.003)], text, slots=1, line="{most: 4}") as run:

        def call(name: str) -> asyncio.Future[aiohttp.ClientResponse]:
            headers = {"Authorization": f"Bearer {name}-key"}
            return asyncio.ensure_future(run.http.post(f"{run.url}/v1/chat/completions", json=ASK, headers=headers))

        many = [call("m") for _ in range(5)]
        await until_waiting(run, 4)
        few = []
        for refused in (1, 2, 3):
            few.append(call("f"))
            async with asyncio.timeout(10):
                while sum(one.done() for one in [*many, *few]) < refused:  # noqa: ASYNC110  (there is no event)
                    await asyncio.sleep(0.001)
        assert [(await one).status for one in few] == [200, 200, 429], "who has as many as any other is refused"
        answers = [await one for one in many]
        assert sorted(one.status for one in answers) == [200] * 3 + [429] * 2
        (error, _) = [await error_of(one, 429) for one in answers if one.status == 429]
        assert error["code"] == "queue_full"


async def test_who_leaves_the_line_costs_its_caller_no_turn() -> None:
    turns = RoundRobin()
    one, two, other = (WaitingCall(Call("r", "chat", "demo", Chat(()), caller=name), "demo") for name in "aab")
    for waiting in (one, two, other):
        turns.add(waiting)
    turns.remove(one)
    assert list(turns) == [two, other]
    turns.add(one)
    turns.served(two)
    assert list(turns) == [other, one], "but who was served has had its turn"
