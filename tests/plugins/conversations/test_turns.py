"""Calls of one conversation are answered one at a time, across processes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select, update

from plugins.conversations.messages import StoredMessage
from plugins.conversations.store import Store
from plugins.conversations.tables import TALKS
from plugins.conversations.turns import LEASE, Turns, renew_leases
from proxy.types import Message
from proxy.upstreams.demo import Fault, Simulator
from tests.conftest import ASK, Running, Start
from tests.plugins.conversations.asking import A, asks, config, echo, kept, say, store_of, texts
from tests.servers import PostgresServer

CALL = {**ASK, "conversation": "t"}


def turns_of(run: Running) -> Turns:
    found = run.server.services.state["conversations turns"]
    assert isinstance(found, Turns)
    return found


async def lease(run: Running) -> tuple[str, int]:
    async with store_of(run).database.reading() as connection:
        row = (await connection.execute(select(TALKS.c.holder, TALKS.c.held_until))).one()
    return row.holder, row.held_until


async def test_concurrent_writers_in_two_processes_lose_and_duplicate_nothing(start: Start, database_url: str) -> None:
    text = config(database_url)
    async with start(text, echo()) as one, start(text, echo()) as two:
        await asyncio.gather(
            *(say(run, f"{name} {number}") for number in range(12) for name, run in (("one", one), ("two", two)))
        )
        found = texts(await kept(one))
        assert sorted(found[::2]) == sorted(f"{name} {number}" for number in range(12) for name in ("one", "two"))
        assert found[1::2] == [f"heard {text}" for text in found[::2]]
        assert not turns_of(one).held and not turns_of(two).lines, "no lease is left"


async def test_a_killed_process_loses_its_turn_when_the_lease_expires(start: Start, database_url: str) -> None:
    async with start(config(database_url, wait=5), echo()) as run:
        await say(run, "one")
        store = store_of(run)
        over = store.now() + 300_000
        await store.change("alice", "t", {"holder": "dead", "held_until": over})
        await say(run, "two")
        assert store.now() >= over - 10_000 and await lease(run) == ("", 0)


async def test_a_turn_lasts_as_long_as_its_lease_is_renewed(start: Start, database_url: str) -> None:
    slow, go = held_back()
    async with start(config(database_url, wait=0.1), slow) as run:
        call = asyncio.ensure_future(say(run, "one", stream=True, max_tokens=40))
        await run.ollama.until(lambda: run.ollama.started > 0)
        store = store_of(run)
        await store.change("alice", "t", {"held_until": store.now() + int(LEASE * 1e6 / 4)})
        await renew_leases(turns_of(run), store)
        holder, until = await lease(run)
        assert holder in turns_of(run).held and until - store.now() > LEASE * 1e6 / 2
        told = await asks(run, "POST", "/v1/chat/completions", status=409, json=CALL)
        assert told["error"]["code"] == "conversation_locked"
        go.set()
        await call


def held_back() -> tuple[Simulator, asyncio.Event]:
    """An Ollama whose first answer continues once the event is set."""
    return Simulator(faults=[Fault("stall", until=(go := asyncio.Event()))]), go


async def test_a_long_write_does_not_block_the_renewal_of_other_leases(start: Start, postgres: PostgresServer) -> None:
    if postgres.process is None:
        await postgres.start()
    url = await postgres.create(f"test_{uuid4().hex}")
    async with start(config(url)) as run, asyncio.timeout(20):
        store, turns = store_of(run), Turns()
        for id in ("a", "b"):
            talk = await store.create("alice", id, holder=id, held_until=store.now() + 1_000_000)
            turns.held[id] = talk.number
        async with store.database.writing() as connection:
            await connection.execute(update(TALKS).where(TALKS.c.id == "a").values(title="long"))
            await renew_leases(turns, store)
        async with store.database.reading() as connection:
            rows = (await connection.execute(select(TALKS.c.id, TALKS.c.held_until))).all()
    assert {id for id, until in rows if until - store.now() > LEASE * 1e6 / 2} == {"b"}


async def leases(run: Running) -> dict[str, float]:
    """How many seconds each conversation's turn still lasts."""
    async with store_of(run).database.reading() as connection:
        rows = (await connection.execute(select(TALKS.c.id, TALKS.c.held_until))).all()
    return {id: (until - store_of(run).now()) / 1e6 for id, until in rows}


async def test_a_turn_that_another_process_has_taken_over_is_not_renewed(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run:
        store, turns = store_of(run), Turns()
        for id, holder in (("mine", "token"), ("taken", "another"), ("given_back", "")):
            talk = await store.create("alice", id, holder=holder, held_until=store.now() + 1_000_000)
            turns.held["token" if id == "mine" else f"token of {id}"] = talk.number
        await renew_leases(turns, store)
        assert {id for id, seconds in (await leases(run)).items() if seconds > LEASE / 2} == {"mine"}


async def test_more_turns_than_a_statement_takes_are_all_renewed(
    start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugins.conversations.turns.PER_STATEMENT", 2)
    async with start(config(database_url)) as run:
        store, turns = store_of(run), Turns()
        for id in "abcde":
            talk = await store.create("alice", id, holder=id, held_until=store.now() + 1_000_000)
            turns.held[id] = talk.number
        await renew_leases(turns, store)
        assert all(seconds > LEASE / 2 for seconds in (await leases(run)).values())


async def test_only_an_empty_new_conversation_is_undone(start: Start, database_url: str) -> None:
    """Where this turn's lease was over, another call may have said something there, or made it anew."""
    async with start(config(database_url)) as run:
        store = store_of(run)
        empty, said = await store.create("alice", "empty"), await store.create("alice", "said")
        async with store.database.writing() as connection:
            await store.append(connection, said, [StoredMessage(Message("user", "hi"))])
        await store.undo(empty)
        await store.undo(said)
        assert await talks(store) == {"said"}
        anew = await store.create("alice", "empty")
        await store.undo(replace(empty, number=anew.number + 1))
        await store.undo(replace(anew, owner="bob"))
        assert await talks(store) == {"said", "empty"}


async def talks(store: Store) -> set[str]:
    async with store.database.reading() as connection:
        return set((await connection.execute(select(TALKS.c.id))).scalars())


async def test_a_server_with_a_wrong_clock_does_not_take_over_a_turn(
    start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, (ollama, go) = config(database_url, wait=0.1), held_back()
    async with start(text, ollama) as slow, start(text, echo()) as other:
        call = asyncio.ensure_future(say(slow, "one", stream=True, max_tokens=40))
        await slow.ollama.until(lambda: slow.ollama.started > 0)
        monkeypatch.setattr(Store, "now", lambda self: int((self.host.clock.time() + 3600) * 1e6))
        told = await asks(other, "POST", "/v1/chat/completions", status=409, json=CALL)
        assert told["error"]["code"] == "conversation_locked"
        go.set()
        await call


async def test_two_concurrent_answers_are_stored_one_after_the_other(start: Start, database_url: str) -> None:
    """This happens if a process was suspended until its lease had expired."""
    ollama, go = held_back()
    async with start(config(database_url), ollama) as slow, start(config(database_url), echo()) as fast:
        call = asyncio.ensure_future(say(slow, "slow", stream=True, max_tokens=20))
        await slow.ollama.until(lambda: slow.ollama.started > 0)
        await store_of(slow).change("alice", "t", {"held_until": 1})
        await say(fast, "fast")
        go.set()
        await call
        found = await kept(fast)
    assert [one.message.role for one in found] == ["user", "assistant"] * 2
    assert texts(found)[:3] == ["fast", "heard fast", "slow"] and [one.position for one in found] == [1, 2, 3, 4]


async def test_the_number_of_waiting_calls_is_limited(start: Start, tmp_path: Any) -> None:
    ollama, go = held_back()
    async with start(config(f"sqlite:///{tmp_path}/x.db", waiting=1), ollama) as run:
        first = asyncio.ensure_future(say(run, "one", stream=True, max_tokens=40))
        await run.ollama.until(lambda: run.ollama.started > 0)
        second = asyncio.ensure_future(run.http.post(f"{run.url}/v1/chat/completions", json=CALL, headers=A))
        async with asyncio.timeout(30):
            while next(iter(turns_of(run).lines.values())).waiting < 1:  # noqa: ASYNC110  (there is no event)
                await asyncio.sleep(0.005)
        await asks(run, "POST", "/v1/chat/completions", status=409, json=CALL)
        second.cancel()  # a client that gives up waiting leaves nothing behind
        with pytest.raises(asyncio.CancelledError):
            await second
        go.set()
        await first
        await say(run, "two")
        assert len(await kept(run)) == 4 and not turns_of(run).lines
