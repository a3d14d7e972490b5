"""Looked up keys are remembered for seconds, and longer while the database is away."""

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
    """A database of hashes that can be away or hang."""

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


class Looking:
    """What a test looks at."""

    def __init__(self, **rows: Found) -> None:
        self.table = Table(**(rows or {"a": Found(ALICE, None)}))
        self.clock = Watch()
        self.seen: list[str] = []
        self.verified = Verified(self.table.find, self.clock, Background(), self.seen.append)

    async def ask(self, hash: str = "a") -> str:
        """Who it is, or the failure's code."""
        digest = hash.encode()
        if (caller := self.verified.recall(digest)) is not None:
            return caller.name
        try:
            return (await self.verified.verify(digest, hash)).name
        except (Unauthenticated, Busy) as error:
            return str(error.code)


async def test_a_key_is_looked_up_once_in_five_seconds() -> None:
    looking = Looking()
    for _ in range(3):
        assert await looking.ask() == "alice"
        looking.clock.move(2)
    assert len(looking.table.asked) == 1
    assert await looking.ask() == "alice" and len(looking.table.asked) == 2


async def test_a_key_that_another_process_revoked_dies_within_five_seconds() -> None:
    looking = Looking()
    assert await looking.ask() == "alice"
    looking.table.rows["a"] = Found(ALICE, None, "was revoked")
    looking.clock.move(5.1)
    assert await looking.ask() == "invalid_api_key"


async def test_what_was_changed_here_holds_at_once() -> None:
    looking = Looking()
    assert await looking.ask() == "alice"
    looking.table.rows.clear()
    looking.verified.forget(lambda caller: False)
    assert await looking.ask() == "invalid_api_key"


async def test_what_was_changed_here_is_not_believed_while_the_database_is_away_but_all_else_is() -> None:
    looking = Looking(a=Found(ALICE, None), b=Found(Caller("bob", "user", "key_b"), None))
    assert (await looking.ask("a"), await looking.ask("b")) == ("alice", "bob")
    looking.table.away = True
    looking.verified.forget(lambda caller: caller.key == "key_a")
    assert (await looking.ask("a"), await looking.ask("b")) == ("database_unavailable", "bob")


async def test_an_answer_that_was_under_way_during_a_change_is_not_remembered() -> None:
    looking = Looking()
    looking.table.hangs = asyncio.Event()
    asking = asyncio.ensure_future(looking.ask())
    async with asyncio.timeout(30):
        while not looking.table.asked:  # noqa: ASYNC110  (there is no event)
            await asyncio.sleep(0)
    looking.verified.forget(lambda caller: False)
    looking.table.hangs.set()
    await asking
    assert looking.verified.recall(b"a") is None


async def test_while_the_database_is_away_known_keys_live_a_minute_more_and_unknown_ones_wait() -> None:
    looking = Looking()
    assert await looking.ask() == "alice"
    looking.table.away = True
    for seconds in (6, 30, 28.9):
        looking.clock.move(seconds)
        assert await looking.ask() == "alice"
        assert await looking.ask("b") == "database_unavailable"
    looking.clock.move(0.2)
    assert await looking.ask() == "database_unavailable"
    looking.table.away = False
    looking.clock.move(1.1)
    assert await looking.ask() == "alice" and await looking.ask("b") == "invalid_api_key"


async def test_a_database_that_is_away_is_asked_once_a_second() -> None:
    looking = Looking()
    looking.table.away = True
    for _ in range(10):
        assert await looking.ask() == "database_unavailable"
    assert len(looking.table.asked) == 1
    looking.clock.move(1.1)
    await looking.ask()
    assert len(looking.table.asked) == 2


async def test_a_database_that_hangs_holds_up_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "PATIENCE", 0.02)
    looking = Looking()
    assert await looking.ask() == "alice"
    looking.table.hangs = asyncio.Event()
    looking.clock.move(6)
    assert await looking.ask() == "alice"
    looking.clock.move(1)
    asking = [asyncio.ensure_future(looking.ask(key)) for key in ("a", "b")]
    for _ in range(10):  # turns of the event loop, in none of which time passes: nobody waits a second time
        await asyncio.sleep(0)
    assert [one.done() and one.result() for one in asking] == ["alice", "database_unavailable"]
    looking.table.hangs.set()


async def test_a_key_is_not_believed_beyond_its_end_even_while_the_database_is_away() -> None:
    looking = Looking(a=Found(ALICE, int((1_000_000 + 3) * 1e6)))
    assert await looking.ask() == "alice"
    looking.table.away = True
    looking.clock.move(2.9)
    assert await looking.ask() == "alice"
    looking.clock.move(0.2)
    assert await looking.ask() == "database_unavailable"


async def test_a_flood_of_wrong_keys_is_few_questions_and_pushes_no_right_one_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verified, "PATIENCE", 60.0)  # a busy machine takes a while for so many
    looking = Looking()
    assert await looking.ask() == "alice"
    told = await asyncio.gather(*(looking.ask(f"wrong {number % 2000}") for number in range(5000)))
    assert set(told) == {"invalid_api_key"}
    assert len(looking.table.asked) <= 6 and max(map(len, looking.table.asked)) <= verified.BATCH
    assert await looking.ask("wrong 7") == "invalid_api_key" and len(looking.table.asked) <= 6
    assert looking.verified.recall(b"a") == ALICE


async def test_a_revoked_key_dies_in_a_flood_of_wrong_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "MOST", 10)
    monkeypatch.setattr(verified, "BATCH", 5)
    looking = Looking()
    assert await looking.ask() == "alice"
    del looking.table.rows["a"]
    looking.clock.move(verified.LIFE)
    flood = [asyncio.ensure_future(looking.ask(f"wrong {number}")) for number in range(30)]
    await asyncio.sleep(0)
    assert await looking.ask() == "invalid_api_key" and "a" in looking.table.asked[1]
    await asyncio.gather(*flood)


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "MOST", 10)
    looking = Looking(**{str(number): Found(ALICE, None) for number in range(30)})
    for number in range(60):
        await looking.ask(str(number))
    assert len(looking.verified.known) == len(looking.verified.refused) == 10
    assert looking.verified.waiting == {}


async def test_a_fault_of_the_look_up_is_told_to_all_who_wait(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_: Sequence[str]) -> Mapping[str, Found]:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    looking = Looking()
    looking.verified.find = broken
    assert set(await asyncio.gather(looking.ask("a"), looking.ask("b"))) == {"database_unavailable"}
    assert "looking up API keys failed" in caplog.text


async def test_a_use_is_written_once_a_minute_and_waits_for_the_database() -> None:
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
