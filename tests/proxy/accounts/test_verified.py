"""Keys that were looked up are cached for seconds, and longer while the database is down."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from proxy.accounts import verified
from proxy.accounts.records import Found
from proxy.accounts.uses import Uses
from proxy.accounts.verified import Verified
from proxy.background import Background
from proxy.errors import Busy, Unauthenticated
from proxy.types import Caller
from tests.clocks import Watch

ALICE = Caller("alice", "user", "key_a")


class Table:
    """A table of key hashes that can fail or hang."""

    def __init__(self, **rows: Found) -> None:
        self.rows = rows
        self.asked: list[Sequence[str]] = []
        self.away = False
        self.hangs: asyncio.Event | None = None

    async def find(self, hashes: Sequence[str]) -> Mapping[str, Found]:
        self.asked.append(hashes)
        await asyncio.sleep(0)
        if self.hangs is not None:
            await self.hangs.wait()
        if self.away:
            raise Busy("away", code="database_unavailable")
        return {hash: self.rows[hash] for hash in hashes if hash in self.rows}


class Setup:
    """The cache of verified keys with a fake table and clock."""

    def __init__(self, **rows: Found) -> None:
        self.table = Table(**(rows or {"a": Found(ALICE, None)}))
        self.clock = Watch()
        self.seen: list[str] = []
        self.verified = Verified(self.table.find, self.clock, Background(), self.seen.append)

    async def ask(self, hash: str = "a") -> str:
        """The caller's name, or the error's code."""
        digest = hash.encode()
        if (caller := self.verified.recall(digest)) is not None:
            return caller.name
        try:
            return (await self.verified.verify(digest, hash)).name
        except (Unauthenticated, Busy) as error:
            return str(error.code)


async def test_a_key_is_looked_up_once_in_five_seconds() -> None:
    setup = Setup()
    for _ in range(3):
        assert await setup.ask() == "alice"
        setup.clock.move(2)
    assert len(setup.table.asked) == 1
    assert await setup.ask() == "alice" and len(setup.table.asked) == 2


async def test_a_key_revoked_by_another_process_is_refused_within_five_seconds() -> None:
    setup = Setup()
    assert await setup.ask() == "alice"
    setup.table.rows["a"] = Found(ALICE, None, "was revoked")
    setup.clock.move(5.1)
    assert await setup.ask() == "invalid_api_key"


async def test_a_change_in_this_process_takes_effect_at_once() -> None:
    setup = Setup()
    assert await setup.ask() == "alice"
    setup.table.rows.clear()
    setup.verified.forget(lambda caller: False)
    assert await setup.ask() == "invalid_api_key"


async def test_while_the_database_is_down_only_keys_changed_here_are_not_served_from_the_cache() -> None:
    setup = Setup(a=Found(ALICE, None), b=Found(Caller("bob", "user", "key_b"), None))
    assert (await setup.ask("a"), await setup.ask("b")) == ("alice", "bob")
    setup.table.away = True
    setup.verified.forget(lambda caller: caller.key == "key_a")
    assert (await setup.ask("a"), await setup.ask("b")) == ("database_unavailable", "bob")


async def test_a_lookup_in_flight_during_a_change_is_not_cached() -> None:
    setup = Setup()
    setup.table.hangs = asyncio.Event()
    asking = asyncio.ensure_future(setup.ask())
    async with asyncio.timeout(30):
        while not setup.table.asked:  # noqa: ASYNC110  (there is no event)
            await asyncio.sleep(0)
    setup.verified.forget(lambda caller: False)
    setup.table.hangs.set()
    await asking
    assert setup.verified.recall(b"a") is None


async def test_while_the_database_is_down_known_keys_work_for_a_minute_and_unknown_ones_do_not() -> None:
    setup = Setup()
    assert await setup.ask() == "alice"
    setup.table.away = True
    for seconds in (6, 30, 28.9):
        setup.clock.move(seconds)
        assert await setup.ask() == "alice"
        assert await setup.ask("b") == "database_unavailable"
    setup.clock.move(0.2)
    assert await setup.ask() == "database_unavailable"
    setup.table.away = False
    setup.clock.move(1.1)
    assert await setup.ask() == "alice" and await setup.ask("b") == "invalid_api_key"


async def test_a_database_that_is_down_is_queried_once_a_second() -> None:
    setup = Setup()
    setup.table.away = True
    for _ in range(10):
        assert await setup.ask() == "database_unavailable"
    assert len(setup.table.asked) == 1
    setup.clock.move(1.1)
    await setup.ask()
    assert len(setup.table.asked) == 2


async def test_a_database_that_hangs_delays_calls_only_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "PATIENCE", 0.02)
    setup = Setup()
    assert await setup.ask() == "alice"
    setup.table.hangs = asyncio.Event()
    setup.clock.move(6)
    assert await setup.ask() == "alice"
    setup.clock.move(1)
    asking = [asyncio.ensure_future(setup.ask(key)) for key in ("a", "b")]
    for _ in range(10):  # iterations of the event loop in which no time passes, so no call waits a second time
        await asyncio.sleep(0)
    assert [one.done() and one.result() for one in asking] == ["alice", "database_unavailable"]
    setup.table.hangs.set()


async def test_an_expired_key_is_refused_even_while_the_database_is_down() -> None:
    setup = Setup(a=Found(ALICE, int((1_000_000 + 3) * 1e6)))
    assert await setup.ask() == "alice"
    setup.table.away = True
    setup.clock.move(2.9)
    assert await setup.ask() == "alice"
    setup.clock.move(0.2)
    assert await setup.ask() == "database_unavailable"


async def test_a_flood_of_invalid_keys_causes_few_queries_and_evicts_no_valid_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verified, "PATIENCE", 60.0)  # so many take a while on a busy machine
    setup = Setup()
    assert await setup.ask() == "alice"
    told = await asyncio.gather(*(setup.ask(f"wrong {number % 2000}") for number in range(5000)))
    assert set(told) == {"invalid_api_key"}
    assert len(setup.table.asked) <= 6 and max(map(len, setup.table.asked)) <= verified.BATCH
    assert await setup.ask("wrong 7") == "invalid_api_key" and len(setup.table.asked) <= 6
    assert setup.verified.recall(b"a") == ALICE


async def test_a_revoked_key_is_refused_during_a_flood_of_invalid_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "MOST", 10)
    monkeypatch.setattr(verified, "BATCH", 5)
    setup = Setup()
    assert await setup.ask() == "alice"
    del setup.table.rows["a"]
    setup.clock.move(verified.LIFE)
    flood = [asyncio.ensure_future(setup.ask(f"wrong {number}")) for number in range(30)]
    await asyncio.sleep(0)
    assert await setup.ask() == "invalid_api_key" and "a" in setup.table.asked[1]
    await asyncio.gather(*flood)


async def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "MOST", 10)
    setup = Setup(**{str(number): Found(ALICE, None) for number in range(30)})
    for number in range(60):
        await setup.ask(str(number))
    assert len(setup.verified.known) == len(setup.verified.refused) == 10
    assert setup.verified.waiting == {}


async def test_all_waiting_calls_get_an_exception_of_the_lookup(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_: Sequence[str]) -> Mapping[str, Found]:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    setup = Setup()
    setup.verified.find = broken
    assert set(await asyncio.gather(setup.ask("a"), setup.ask("b"))) == {"database_unavailable"}
    assert "looking up API keys failed" in caplog.text


async def test_uses_are_written_once_a_minute_and_wait_for_the_database() -> None:
    clock, written, away = Watch(), list[Mapping[str, int]](), True

    async def write(times: Mapping[str, int]) -> None:
        if away:
            raise Busy("away")
        written.append(times)

    uses = Uses(write, clock, Background())
    for _ in range(3):
        uses.note("key_a")
        clock.move(10)
    await asyncio.sleep(0.01)
    assert written == []
    away = False
    async with asyncio.timeout(30):
        while not written:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert written == [{"key_a": 1_000_000 * 1_000_000}]
    clock.move(31)
    uses.note("key_a")
    await uses.close()
    assert written[1:] == [{"key_a": 1_000_061 * 1_000_000}]
