"""The contract of all counters: those in memory, in Redis, and in a Redis cluster."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import count
from typing import Any

import pytest
from redis.asyncio import Redis

from proxy.clock import Clock
from proxy.stores.counters import MOST_NAMES, Claim, Counters, Reservation, Verdict, memory
from proxy.stores.counters import redis as in_redis
from proxy.stores.counters.memory import InMemory
from proxy.stores.counters.redis import InRedis
from proxy.stores.redis import RedisStore
from tests.clocks import Watch
from tests.servers import Cluster, RedisServer, all_slots, emptied, free_port

KINDS = ("memory", "redis", "cluster")
LEASES = count()
CLOCK = "{gemmapy:limits}:test-clock"
"""The key from which the scripts read the test's time; in a cluster it is on the same node as the counters."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RedisServer]]:
    folder = tmp_path_factory.mktemp("redis")
    plain, cluster = RedisServer(folder, free_port()), Cluster(folder, free_port())
    try:
        asyncio.run(plain.start())
        asyncio.run(cluster.start("--cluster-enabled", "yes"))
        asyncio.run(all_slots(cluster.port))
        yield {"redis": plain, "cluster": cluster}
    finally:
        plain.kill()
        cluster.kill()


Opener = Callable[[], Counters]


@pytest.fixture(params=KINDS)
async def opener(request: pytest.FixtureRequest, servers: dict[str, RedisServer]) -> AsyncIterator[Opener]:
    """Opens the same counters again, as another process would; counters in memory belong to one process."""
    stores: list[RedisStore] = []
    alone = InMemory(Clock())

    def opened() -> Counters:
        if request.param == "memory":
            return alone
        stores.append(RedisStore(servers[request.param].url, 30.0, Clock()))
        return stores[-1].counters()

    if request.param != "memory":
        await emptied(servers[request.param].port)
    yield opened
    for store in stores:
        await store.aclose()


Move = Callable[[float], Awaitable[None]]


@pytest.fixture
async def move_clock(
    request: pytest.FixtureRequest, servers: dict[str, RedisServer], opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> Move:
    """Moves the counters' clock, which otherwise stands still; Redis' scripts read the time from a key."""
    watch, kind = Watch(), request.node.callspec.params["opener"]

    async def moved(seconds: float) -> None:
        watch.move(seconds)
        if kind != "memory":
            async with Redis(port=servers[kind].port) as client:
                await client.hset(CLOCK, mapping={"seconds": int(watch.now), "micros": round(watch.now % 1 * 1e6)})

    for script in (in_redis.TAKE, in_redis.SETTLE, in_redis.RENEWAL):
        text = script.text.replace(b"'TIME'", f"'HMGET', '{CLOCK}', 'seconds', 'micros'".encode())
        assert text != script.text
        monkeypatch.setattr(script, "text", text)
        monkeypatch.setattr(script, "digest", hashlib.sha1(text, usedforsecurity=False).hexdigest())
    if isinstance(alone := opener(), InMemory):
        monkeypatch.setattr(alone, "time", watch.monotonic)
    await moved(0)
    return moved


@pytest.fixture
def counters(opener: Opener) -> Counters:
    return opener()


def window(amount: int = 1, most: int = 10, key: str = "w", seconds: float = 60.0) -> Claim:
    return Claim(key, most, amount, seconds)


def level(amount: int = 1, most: int = 10, key: str = "l", **more: Any) -> Claim:
    return Claim(key, most, amount, 0.0, **{"life": 60.0, **more})


async def take(counters: Counters, *claims: Claim) -> tuple[Verdict, Reservation]:
    lease = f"lease-{next(LEASES)}"
    verdict = await counters.take(claims, lease)
    return verdict, Reservation(lease, claims, verdict.at)


async def granted(counters: Counters, *claims: Claim) -> Reservation:
    verdict, reservation = await take(counters, *claims)
    assert verdict.full == -1 and not verdict.unknown
    return reservation


async def settle(counters: Counters, reservation: Reservation, *amounts: int) -> None:
    done = asyncio.Event()
    counters.settle(reservation, amounts, done.set)
    async with asyncio.timeout(30):
        await done.wait()
    await counters.idle()


async def used(counters: Counters, *claims: Claim) -> list[int]:
    return list((await counters.take(claims, "")).used)


async def test_a_granted_amount_counts_as_used(counters: Counters) -> None:
    verdict, _ = await take(counters, window(3), level(4))
    assert list(verdict.used) == [3, 4] and verdict.full == -1
    looked = await counters.take((window(), level()), "")
    assert list(looked.used) == [3, 4] and looked.full == -1
    assert 20 < looked.whole[0] <= 61 and looked.whole[1] == 0


@pytest.mark.parametrize("claim", [window, level])
async def test_nothing_is_granted_beyond_the_limit(counters: Counters, claim: Callable[..., Claim]) -> None:
    await granted(counters, claim(10))
    verdict, _ = await take(counters, claim(1))
    assert verdict.full == 0 and list(verdict.used) == [10]


async def test_claims_are_granted_all_or_none(counters: Counters) -> None:
    verdict, _ = await take(counters, window(1), level(1), level(11, key="other"))
    assert verdict.full == 2 and await used(counters, window(), level(), level(key="other")) == [0, 0, 0]


async def test_the_verdict_names_the_first_full_counter(counters: Counters) -> None:
    verdict, _ = await take(counters, window(1), level(11), window(11, key="other"))
    assert verdict.full == 1


async def test_reading_a_counter_takes_nothing(counters: Counters) -> None:
    assert await used(counters, window(5), level(5)) == [0, 0] == await used(counters, window(5), level(5))


@pytest.mark.parametrize("claim", [window, level])
async def test_of_many_concurrent_claims_exactly_the_limit_is_granted(
    opener: Opener, claim: Callable[..., Claim]
) -> None:
    processes = [opener(), opener()]
    told = await asyncio.gather(*(take(processes[number % 2], claim(1, most=100)) for number in range(150)))
    assert sum(verdict.full == -1 for verdict, _ in told) == 100


async def test_a_window_frees_old_amounts_and_says_when(counters: Counters, move_clock: Move) -> None:
    await granted(counters, window(4))
    await move_clock(10)
    await granted(counters, window(6))
    (verdict, _), (later, _) = [await take(counters, window(amount)) for amount in (3, 5)]
    assert verdict.wait is not None and 49 < verdict.wait <= 51
    assert later.wait is not None and verdict.wait < later.wait
    await move_clock(verdict.wait - 0.002)
    assert (await take(counters, window(3)))[0].full == 0
    await move_clock(0.003)
    await granted(counters, window(3))


async def test_a_claim_larger_than_the_limit_is_refused_without_a_wait(counters: Counters) -> None:
    await granted(counters, window(1))
    verdict, _ = await take(counters, window(11))
    assert verdict.full == 0 and verdict.wait is None


async def test_a_sliding_window_never_grants_more_than_its_limit(counters: Counters, move_clock: Move) -> None:
    times = []
    for step in range(180):
        if (await take(counters, window(1, most=5)))[0].full == -1:
            times.append(step * 1.003)
        await move_clock(1.003)
    assert len(times) == 15
    # Between a claim and the fifth one after it a whole window must have passed.
    assert all(last - first >= 60 for first, last in zip(times, times[5:], strict=False))


async def test_settling_frees_what_was_not_used(counters: Counters) -> None:
    reservation = await granted(counters, window(8), level(8))
    await settle(counters, reservation, 3, 2)
    assert await used(counters, window(), level()) == [3, 2]


async def test_settling_counts_what_was_used_beyond_the_grant(counters: Counters) -> None:
    reservation = await granted(counters, window(2), level(2))
    await settle(counters, reservation, 30, 20)
    assert await used(counters, window(), level()) == [30, 20]
    verdict, _ = await take(counters, window(1))
    assert verdict.full == 0 and verdict.wait is not None


async def test_an_amount_that_left_the_window_before_it_is_settled_is_not_freed_twice(
    counters: Counters, move_clock: Move
) -> None:
    old = await granted(counters, window(8))
    await move_clock(62)
    await granted(counters, window(5))
    await settle(counters, old, 0)
    assert await used(counters, window()) == [5]


async def test_settling_one_holding_does_not_free_another(counters: Counters) -> None:
    one, other = await granted(counters, level(4)), await granted(counters, level(5))
    await settle(counters, one, 0)
    assert await used(counters, level()) == [5]
    await settle(counters, other, 1)
    assert await used(counters, level()) == [1]


async def test_a_claim_of_zero_is_granted_even_beyond_the_limit(counters: Counters) -> None:
    await settle(counters, await granted(counters, window(2), level(2)), 30, 20)
    await granted(counters, window(0), level(0))
    assert await used(counters, window(), level()) == [30, 20]


async def test_the_verdict_says_whether_reserved_amounts_could_still_become_free(counters: Counters) -> None:
    await settle(counters, await granted(counters, level(2)), 3)
    held = await granted(counters, level(5))
    assert [(await take(counters, level(amount)))[0].wait for amount in (3, 7, 8)] == [0, 0, None]
    await settle(counters, held, 0)
    await granted(counters, level(7))


async def test_a_missing_counter_must_be_given_its_initial_value(counters: Counters) -> None:
    claims = (window(1), level(1, spent=None), level(1, key="m", spent=None))
    verdict, _ = await take(counters, *claims)
    assert list(verdict.unknown) == [1, 2] and await used(counters, window()) == [0]
    await granted(counters, window(1), level(1, spent=7), level(1, key="m", spent=0))
    assert list((await take(counters, *claims))[0].used) == [2, 9, 2]
    assert (await take(counters, level(4, spent=0)))[0].full == 0  # an existing counter ignores the initial value


async def test_lift_raises_what_was_spent_and_never_lowers_it(counters: Counters) -> None:
    await settle(counters, await granted(counters, level(3)), 3)
    await counters.lift({"l": 5, "nobody": 3})
    assert await used(counters, level()) == [5]
    await counters.lift({"l": 4})
    assert await used(counters, level(), level(key="nobody")) == [5, 0]


async def test_large_amounts_stay_exact(counters: Counters) -> None:
    most = 9_000_000_000_000_000
    reservation = await granted(counters, level(1_234_567_890_123_457, most), window(1_234_567_890_123_457, most))
    assert await used(counters, level(), window()) == [1_234_567_890_123_457] * 2
    await settle(counters, reservation, 7_000_000_000_000_001, 7_000_000_000_000_001)
    assert await used(counters, level(), window()) == [7_000_000_000_000_001] * 2


async def test_names_are_listed_in_order(counters: Counters) -> None:
    await counters.note(["b", "a"])
    await counters.note(["c", "a"])
    await counters.note([])
    assert await counters.names() == ["a", "b", "c"]


async def test_the_number_of_names_is_bounded_and_the_most_recently_used_stay(counters: Counters) -> None:
    await counters.note(["old"])
    await asyncio.sleep(0.002)
    await counters.note([f"{number}" for number in range(MOST_NAMES)])
    names = await counters.names()
    assert len(names) == MOST_NAMES and "old" not in names


# --- counters shared over a network ------------------------------------------------------------------

shared = pytest.mark.parametrize("opener", ["redis", "cluster"], indirect=True)


@shared
async def test_leases_of_a_dead_process_are_freed_and_those_of_a_live_one_are_not(
    opener: Opener, move_clock: Move, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_redis, "RENEW", 0.0)
    dead, living = opener(), opener()
    await granted(dead, level(6))
    reservation = await granted(living, level(4))
    await move_clock(in_redis.LEASE - 1)
    assert await used(living, level()) == [10]
    await living.renew()
    await move_clock(2)
    assert await used(living, level()) == [4]
    await living.renew()
    await settle(living, reservation, 0)
    assert await used(living, level()) == [0]


@shared
async def test_a_lease_that_was_settled_is_not_renewed(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_redis, "RENEW", 0.0)
    one = opener()
    await settle(one, await granted(one, level(4)), 0)
    assert isinstance(one, InRedis) and one.held == {}
    await one.renew()
    assert await used(one, level()) == [0]


@shared
async def test_a_cancelled_claim_takes_nothing(opener: Opener) -> None:
    one = opener()
    asking = asyncio.ensure_future(one.take((window(5), level(5)), "leaving"))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    await one.idle()
    assert await used(one, window(), level()) == [0, 0]


@shared
async def test_settling_after_a_counter_was_lost_invents_nothing(
    opener: Opener, servers: dict[str, RedisServer], request: pytest.FixtureRequest
) -> None:
    one = opener()
    reservation = await granted(one, level(5, spent=100, most=1000), window(5))
    for server in servers.values():
        await emptied(server.port)
    await settle(one, reservation, 5, 1)
    assert list((await take(one, level(1, spent=None)))[0].unknown) == [0]
    await granted(one, level(1, spent=105, most=1000))
    assert await used(one, level(), window()) == [106, 0]


@shared
async def test_every_key_in_redis_expires(opener: Opener, servers: dict[str, RedisServer]) -> None:
    one = opener()
    reservation = await granted(one, window(5), level(5), level(3, key="m", spent=7))
    await settle(one, reservation, 9, 2, 3)
    await granted(one, window(1, most=100), level(1))
    lives = [life async for life in lives_of(servers)]
    assert len(lives) >= 4 and all(0 < life <= 62_000 for life in lives)


async def lives_of(servers: dict[str, RedisServer]) -> AsyncIterator[int]:
    """The remaining life of each key, in milliseconds."""
    for server in servers.values():
        async with Redis(port=server.port) as client:
            async for key in client.scan_iter("{gemmapy:limits}:*"):
                yield int(await client.pttl(key))


@shared
async def test_a_clock_that_was_set_back_does_not_block_claims(opener: Opener, servers: dict[str, RedisServer]) -> None:
    one = opener()
    await granted(one, window(10))
    for server in servers.values():
        async with Redis(port=server.port) as client:
            async for key in client.scan_iter("{gemmapy:limits}:w"):
                later = str(int((await client.time())[0]) + 3600)
                await client.hset(key, mapping={"newest": later, "oldest": later, later: "10"})
    await granted(one, window(10))


@shared
async def test_leases_of_dead_processes_are_freed_although_the_clock_was_set_back(
    opener: Opener, move_clock: Move
) -> None:
    """Set back by a month; a live process that renews its lease keeps it."""
    await granted(opener(), level(4))
    living, looking = opener(), opener()
    await granted(living, level(3))
    await move_clock(-30 * 86_400)
    assert await used(looking, level()) == [7]
    assert isinstance(living, InRedis)
    living.renewed = float("-inf")
    await move_clock(20)
    await living.renew()
    await move_clock(20)
    assert await used(looking, level()) == [3]


# --- counters in memory ------------------------------------------------------------------------------


async def test_the_least_recently_used_counter_is_evicted_unless_it_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST", 3)
    one = InMemory(Clock())
    await granted(one, level(2, key="held"))
    for number in range(6):
        await settle(one, await granted(one, level(1, key=f"l{number}"), window(1, key=f"w{number}")), 1, 1)
    assert set(one.levels) == {"held", "l4", "l5"} and set(one.windows) == {"w3", "w4", "w5"}


async def test_unused_counters_are_dropped() -> None:
    one = InMemory(watch := Watch())
    await settle(one, await granted(one, level(1, key="m", life=60)), 1)
    await granted(one, window(1, seconds=60), level(1, life=60))
    watch.move(63)
    await one.renew()
    assert one.windows == {} and list(one.levels) == ["l"]  # which is still held
