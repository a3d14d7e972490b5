"""Limits that several processes share through Redis, and what happens when it fails."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis

from plugins.limits import plugin
from plugins.limits.counting import Counting
from plugins.limits.ledger import Ledger
from proxy.host import WorkerInfo
from proxy.stores import breaker
from proxy.stores.counters import Claim, Verdict, redis
from proxy.stores.keyvalue import StoreError
from proxy.upstreams.demo import Fault, Simulator
from tests.clocks import Watch
from tests.conftest import Running, Start
from tests.plugins.limits.asking import chat, limits, limits_shown, statuses, until_used, used
from tests.servers import RedisServer, redis_server
from tests.whole.asking import user
from tests.whole.commands import served


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with redis_server(tmp_path) as running:
        yield running


async def test_two_servers_let_exactly_the_limit_through(start: Start, server: RedisServer) -> None:
    text = limits("{requests_per_minute: 100}", store=server.url)
    async with start(text) as one, start(text) as other:
        answers = await asyncio.gather(*(chat((one, other)[number % 2]) for number in range(150)))
        assert Counter(status for status, _, _ in answers) == {200: 100, 429: 50}
        assert await used(one, "requests_per_minute") == await used(other, "requests_per_minute") == 100


async def test_several_processes_let_exactly_the_limit_through(server: RedisServer, tmp_path: Path) -> None:
    path = tmp_path / "proxy.yaml"
    text = limits("{per: all, requests_per_minute: 100, at_once: 500}", store=server.url)
    path.write_text(text + "upstreams: {local: {demo: {}}}\nlisten: {port: 0, workers: 2, drain: 0}\n")
    async with served("serve", "--config", str(path)) as serving, aiohttp.ClientSession() as http:

        async def one() -> int:
            asked = {"model": "demo", "messages": user("hi")}
            async with http.post(f"{serving.url}/v1/chat/completions", json=asked) as response:
                await response.read()
                return response.status

        got = Counter(await asyncio.gather(*(one() for _ in range(150))))
    assert got == {200: 100, 429: 50}


async def test_tokens_of_two_servers_are_counted_together(start: Start, server: RedisServer) -> None:
    text = limits("{tokens_per_minute: 100000, at_once: 50}", store=server.url)
    async with start(text) as one, start(text) as other:
        answers = await asyncio.gather(
            *(chat((one, other)[number % 2], stream=number % 3 == 0, max_tokens=number + 1) for number in range(20))
        )
        assert {status for status, _, _ in answers} == {200}
        whole = [body["usage"]["total_tokens"] for _, body, _ in answers if "usage" in body]
        streamed = [number + 1 for number in range(20) if number % 3 == 0]
        await until_used(one, "at_once", 0)
        assert sum(whole) < await used(other, "tokens_per_minute") <= sum(whole) + sum(streamed) + 20 * 20


async def test_leases_of_a_killed_process_are_freed(start: Start, server: RedisServer, tmp_path: Path) -> None:
    text = limits("{per: all, at_once: 1}", store=server.url)
    path = tmp_path / "proxy.yaml"
    path.write_text(text + "upstreams: {local: {demo: {delay: 5}}}\nlisten: {port: 0}\n")
    async with start(text) as run:
        async with served("serve", "--config", str(path)) as serving, aiohttp.ClientSession() as http:
            asked = {"model": "demo", "messages": user("hi"), "stream": True, "max_tokens": 500}
            response = await http.post(f"{serving.url}/v1/chat/completions", json=asked)
            await response.content.readany()
            assert (await chat(run))[0] == 429
            serving.process.kill()
            await serving.process.wait()
            response.close()
        assert (await chat(run))[0] == 429
        async with Redis(port=server.port) as client:
            (leases,) = [one async for one in client.scan_iter("*:leases")]
            held: Any = await client.zrange(leases, 0, -1, withscores=True)  # the client's types do not fit one version
            ((member, ends),) = held
            seconds = int((await client.time())[0])
            assert 0 < ends / 1000 - seconds <= 31
            await client.zadd(leases, {member: (seconds - 1) * 1000})  # as if the lease had expired
        assert (await chat(run))[0] == 200


async def until_renewed(client: Redis) -> None:
    """Wait until all leases have been renewed."""
    async with asyncio.timeout(30):
        for leases in [one async for one in client.scan_iter("*:leases")]:
            held: Any = await client.zrange(leases, 0, -1, withscores=True)
            while await client.zrange(leases, 0, -1, withscores=True) == held:  # noqa: ASYNC110  (there is no event)
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("trouble", ["killed", "frozen"])
async def test_while_redis_is_down_each_process_counts_alone_and_logs_it(
    start: Start, server: RedisServer, trouble: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "REST", 1.0)
    monkeypatch.setattr(breaker, "FAILURES", 1)
    text = limits("{requests_per_minute: 3}", store=server.url).replace("timeout: 30", "timeout: 0.05")
    async with start(text) as run:
        server.kill() if trouble == "killed" else server.freeze()
        with caplog.at_level(logging.WARNING):
            assert await statuses(run, 8) == [200] * 3 + [429] * 5
        assert len([one for one in caplog.messages if "counted in this process alone" in one]) == 1
        response = await run.http.get(f"{run.url}/api/limits")
        assert response.status == 503 and (await response.json())["error"]["code"] == "store_unavailable"
        if trouble == "killed":
            await server.start()
        else:
            server.thaw()
        async with asyncio.timeout(30):
            while (await chat(run))[0] == 429:  # noqa: ASYNC110  (there is no event)
                await asyncio.sleep(0.05)


async def test_without_redis_calls_are_refused_if_configured(start: Start, server: RedisServer) -> None:
    async with start(limits("{requests_per_minute: 30}", store=server.url, more="away: refuse, ")) as run:
        assert (await chat(run))[0] == 200
        server.kill()
        status, body, headers = await chat(run)
        assert (status, body["error"]["code"], headers["retry-after"]) == (503, "store_unavailable", "5")


async def test_killing_redis_under_load_fails_no_call_and_leaves_no_lease(
    start: Start, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "REST", 0.1)
    stop = asyncio.Event()
    text = limits("{requests_per_minute: 100000, tokens_per_minute: 9999999, at_once: 50}", store=server.url)

    async def caller(run: Running) -> Counter[int]:
        got: Counter[int] = Counter()
        while not stop.is_set():
            got.update(await statuses(run, 1, stream=bool(got.total() % 2), max_tokens=3))
        return got

    async with start(text) as run:
        callers = [asyncio.ensure_future(caller(run)) for _ in range(6)]
        for _ in range(2):
            await asyncio.sleep(0.15)
            server.kill()
            await asyncio.sleep(0.15)
            await server.start()
        await asyncio.sleep(0.3)
        stop.set()
        got = sum(await asyncio.gather(*callers), Counter[int]())
        assert set(got) == {200} and got[200] > 10
        await until_used(run, "at_once", 0)
        assert [one for one in held(run) if one] == []


def held(run: Running) -> list[object]:
    """The leases that the process itself believes to hold in Redis."""
    opened = run.server.services.state["stores"]
    return [one.store.counting.held for one in opened.values() if getattr(one.store, "counting", None)]


async def test_a_client_that_disconnects_frees_its_slot_in_redis(start: Start, server: RedisServer) -> None:
    text = limits("{at_once: 1, tokens_per_minute: 100000}", store=server.url)
    async with start(text, Simulator(faults=[Fault("stall", after=3)])) as run:
        asked = {"model": "demo", "messages": user("hi"), "stream": True, "max_tokens": 500}
        response = await run.http.post(f"{run.url}/v1/chat/completions", json=asked)
        await response.content.readany()
        assert await used(run, "tokens_per_minute") == 501
        response.close()
        await until_used(run, "at_once", 0)
        assert 0 < await used(run, "tokens_per_minute") < 100


async def test_a_slot_freed_at_one_server_is_free_at_the_other(start: Start, server: RedisServer) -> None:
    text = limits("{per: all, at_once: 1}", store=server.url)
    async with start(text) as one, start(text) as other:
        for number in range(40):
            run = (one, other)[number % 2]
            async with asyncio.timeout(10):
                while (told := (await chat(run, stream=number % 3 == 0))[0]) == 429:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)  # clients do not wait until Redis has been told that they are done
            assert told == 200


async def test_admins_see_what_other_processes_counted(start: Start, server: RedisServer) -> None:
    text = limits("{per: [caller, model], requests_per_minute: 9}", store=server.url)
    async with start(text) as one, start(text) as other:
        await chat(one)
        await limits_shown(one)
        assert [entry["model"] for entry in await limits_shown(other)] == ["demo:latest"]


async def test_a_hanging_database_does_not_stop_the_renewal_of_leases(
    start: Start, server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(self: Ledger) -> dict[str, int]:
        hanging.set()
        await gone.wait()
        return {}

    hanging, gone = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(Ledger, "flush", hangs)
    monkeypatch.setattr(plugin, "TICK", 0.05)
    monkeypatch.setattr(redis, "RENEW", 0.1)
    rules = ("{at_once: 1, tokens_per_day: 1000000}",)
    text = f"database: {{url: 'sqlite:///{tmp_path / 'records.db'}'}}\n" + limits(*rules, store=server.url)
    async with start(text, Simulator(faults=[Fault("stall", after=1)])) as run, Redis(port=server.port) as client:
        asked = {"model": "demo", "messages": user("hi"), "stream": True, "max_tokens": 500}
        try:
            async with run.http.post(f"{run.url}/v1/chat/completions", json=asked) as response:
                await response.content.readany()
                await hanging.wait()
                for _ in range(2):
                    await until_renewed(client)
                assert (await chat(run))[0] == 429
        finally:
            gone.set()


class Gone:
    """A store that is down."""

    def __init__(self) -> None:
        self.lifted: dict[str, int] = {}

    async def take(self, claims: Sequence[Claim], lease: str) -> Verdict:
        raise StoreError("gone")

    async def lift(self, totals: Mapping[str, int]) -> None:
        self.lifted |= totals


class Ninety:
    """Records in which 90 was spent of every budget."""

    async def spent(self, counters: Collection[str]) -> Mapping[str, int]:
        return dict.fromkeys(counters, 90)


async def test_counting_alone_allows_a_share_of_limits_and_the_recorded_rest_of_budgets() -> None:
    host: Any = SimpleNamespace(clock=Watch(), services=SimpleNamespace(worker_info=WorkerInfo(count=2)))
    gone: Any = Gone()
    counting = Counting(gone, Ninety(), host, refuses=False)
    minute, day = Claim("minute", 4, 1, 60.0), Claim("day", 110, 4, life=60.0, spent=None)
    verdicts = [(await counting.take([minute, day], f"{one}"))[0] for one in range(3)]
    assert [(one.full, one.used[1]) for one in verdicts] == [(-1, 94), (-1, 98), (0, 98)]
    await counting.lift({"day": 100})  # spending by other processes
    assert (await counting.take([day], "later"))[0].full == 0 and gone.lifted == {"day": 100}
