"""Rows are not lost within the limit, and not written twice."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import chain, count
from operator import itemgetter
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import insert, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.usage import sums
from plugins.usage import writer as module
from plugins.usage.retention import Retention
from plugins.usage.rows import CallRow, call_row
from plugins.usage.tables import BATCHES, CALLS, FEATURE, SUMS
from plugins.usage.writer import Batch, Writer
from proxy.announcements import CallEnded
from proxy.host import Clock
from proxy.sql.database import Database, DatabaseAway
from tests.conftest import ASK, Running, Start
from tests.plugins.usage.asking import A, chat, config, get, rows, until, writer_of, written
from tests.servers import PostgresServer, free_port


def row(number: int = 1, **changes: Any) -> CallRow:
    ended = CallEnded(f"req_{number}", 1.7e9 + number, "ann", "", "chat", False, "demo", "demo:latest", "local", 5, 7)
    return call_row(ended, "demo:latest")._replace(**changes)


@pytest.fixture
async def writer(database_url: str) -> AsyncIterator[Writer]:
    database = Database(database_url, 3, 10)
    await database.migrate(FEATURE)
    writer = Writer(database, Clock())
    writer.most = 1000
    yield writer
    await database.aclose()


async def calls(writer: Writer) -> int:
    (day,) = [one["calls"] for one in await rows(writer.database, SUMS[86_400]) if not one["own"]]
    found = await rows(writer.database, CALLS)
    assert day == len(found)
    return len(found)


async def test_a_batch_committed_without_confirmation_is_not_written_twice(writer: Writer) -> None:
    batch = Batch([row(1), row(2)])
    await writer.put(batch)
    await writer.put(batch)
    assert await calls(writer) == 2 and len(await rows(writer.database, BATCHES)) == 1


async def test_columns_omitted_for_their_default_read_the_same(writer: Writer) -> None:
    """A column is omitted if all rows of a batch have its default; NULL is not 0."""
    batches = [
        [row(1, thinking_tokens=None), row(2, thinking_tokens=None)],
        [row(3, thinking_tokens=None), row(4, thinking_tokens=0)],
        [row(5, thinking_tokens=0, error="", cache="hit"), row(6, thinking_tokens=0, error="upstream_cut")],
    ]
    for batch in batches:
        await writer.put(Batch(batch))
    found = {one["call"]: one for one in await rows(writer.database, CALLS)}
    for given in chain.from_iterable(batches):
        assert {name: found[given.call][name] for name in CallRow._fields} == given._asdict()


async def test_rows_written_in_one_statement_read_the_same(writer: Writer) -> None:
    """For any contents, including numbers too large for JSON parsers."""
    odd = ('"', "\\", "[1]", "null", "é\U0001f600", "0" * 30, "a\nb", "")
    plain = [row(n, fallback=odd[n % len(odd)], cost=n % 3 or None, total_ns=n**11) for n in range(40)]
    long = [row(100 + n, saved=2**63 - 1 - n, error="x" * (n % 2)) for n in range(40)]
    for batch in (plain, long):
        await writer.put(Batch(batch))
    found = [{name: one[name] for name in CallRow._fields} for one in await rows(writer.database, CALLS)]
    assert sorted(found, key=itemgetter("at")) == [one._asdict() for one in (*plain, *long)]


async def test_a_number_that_is_too_long_for_the_database_is_not_rounded(writer: Writer) -> None:
    with pytest.raises((OverflowError, DBAPIError)):
        await writer.put(Batch([row(n, cost=2**63 + n) for n in range(40)]))
    assert not await rows(writer.database, CALLS)


async def test_with_an_old_sqlite_rows_are_inserted_one_by_one(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    await writer.put(Batch([row(n) for n in range(40)]))
    assert await calls(writer) == 40


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite has one writer at a time
async def test_an_unconfirmed_commit_is_waited_for(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a connection is cut off, the database may still be committing."""

    async def adds(connection: AsyncConnection, added: Any) -> None:
        await add(connection, added)
        if not inside.is_set():
            inside.set()
            await asyncio.sleep(0.3)

    inside, add, batch = asyncio.Event(), sums.add, Batch([row(1), row(2)])
    monkeypatch.setattr(sums, "add", adds)
    writer.writing.append(batch)
    first = asyncio.ensure_future(writer.put(batch))
    await inside.wait()
    await writer.flush()
    await first
    assert await calls(writer) == 2


async def test_a_read_only_standby_loses_no_row(start: Start, postgres: PostgresServer) -> None:
    if postgres.process is None:
        await postgres.start()
    url = await postgres.create(name := f"standby_{uuid.uuid4().hex}")
    connection = await asyncpg.connect(postgres.url())
    try:
        async with start(config(url)) as run:
            for read_only in ("on", "off"):
                await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {read_only}")
                await connection.execute(
                    f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
                )
                await chat(run)
                if read_only == "on":
                    with pytest.raises(DatabaseAway):
                        await writer_of(run).flush()
            assert len(await written(run, 2)) == 2 and writer_of(run).lost == 0
    finally:
        await connection.close()


async def test_several_processes_add_to_the_same_sums(writer: Writer, database_url: str) -> None:
    other = Writer(Database(database_url, 3, 10), Clock())
    try:
        await asyncio.gather(*(one.put(Batch([row(n)])) for one in (writer, other) for n in range(10)))
        assert await calls(writer) == 20
    finally:
        await other.database.aclose()


async def test_of_a_batch_that_fails_only_the_invalid_row_is_lost(writer: Writer) -> None:
    for number in range(8):
        writer.add(row(number, **({"at": "when"} if number == 5 else {})))
    await writer.flush()
    assert (await calls(writer), writer.lost, writer.pending) == (7, 1, 0)


async def test_rows_lost_beyond_the_limit_are_counted_and_logged_once(
    writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    writer.most = 3
    for number in range(10):
        writer.add(row(number))
    assert (writer.pending, writer.lost) == (3, 7)
    assert len([one for one in caplog.records if "are lost" in one.message]) == 1
    await writer.flush()
    assert await calls(writer) == 3


@asynccontextmanager
async def away(database: Database, monkeypatch: pytest.MonkeyPatch, after: bool) -> AsyncIterator[None]:
    """The database is down until the block is left.  after: it fails after the commit and before its confirmation."""
    whole = database.writing

    @asynccontextmanager
    async def writing() -> AsyncIterator[AsyncConnection]:
        if after:
            async with whole() as connection:
                yield connection
        raise DatabaseAway("gone")

    with monkeypatch.context() as patched:
        patched.setattr(database, "writing", writing)
        yield


@pytest.mark.parametrize("after", [False, True])
async def test_rows_wait_for_the_database(writer: Writer, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    for number in range(5):
        writer.add(row(number))
    async with away(writer.database, monkeypatch, after):
        for _ in range(2):
            with pytest.raises(DatabaseAway):
                await writer.flush()
    writer.add(row(9))
    assert (writer.pending, writer.lost) == (6, 0)
    await writer.close(5)
    assert (await calls(writer), writer.pending) == (6, 0)


async def test_a_server_that_stops_does_not_wait_for_ever(writer: Writer, caplog: pytest.LogCaptureFixture) -> None:
    writer.add(row())
    await writer.database.aclose()
    dead = Database(f"postgresql://me@127.0.0.1:{free_port()}/x", 1, 1)
    writer.database = dead
    await writer.close(0.1)
    assert "1 records of usage were not written" in caplog.text
    await dead.aclose()


async def test_a_retiring_pipeline_does_not_wait_for_rows_of_others(
    writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    async def adding() -> None:
        for number in count():
            writer.add(row(number))
            await asyncio.sleep(0.001)

    writer.most = 10**6
    busy = asyncio.ensure_future(adding())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await writer.close(15)
    busy.cancel()
    assert caplog.text == ""


async def test_rows_are_written_soon_and_a_full_batch_at_once(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 30.0)
    task = asyncio.ensure_future(writer.run())
    await asyncio.sleep(0)
    for number in range(module.BATCH):
        writer.add(row(number))
    await until(lambda: writer.pending == 0)
    task.cancel()


async def test_the_last_calls_are_written_when_the_server_stops(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run:
        for _ in range(3):
            await chat(run)
    database = Database(database_url, 1, 10)
    assert len(await rows(database, CALLS)) == 3
    await database.aclose()


async def test_a_reload_keeps_the_writer_and_its_rows(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run:
        await chat(run)
        before = writer_of(run)
        run.configure(config(database_url, pending=7))
        assert await run.server.reload()
        await chat(run)
        assert writer_of(run) is before and before.most == 7
        assert len(await written(run, 2)) == 2


async def calling(run: Running, done: list[str], enough: asyncio.Event) -> None:
    """Make one call after the other, each of which must succeed."""
    while not enough.is_set():
        response = await run.http.post(f"{run.url}/v1/chat/completions", json=ASK, headers=A)
        await response.read()
        assert response.status == 200
        done.append(response.headers["x-request-id"])


async def test_killing_postgresql_under_load_loses_no_call_and_no_row(start: Start, postgres: PostgresServer) -> None:
    if postgres.process is None:
        await postgres.start()
    url = await postgres.create(f"outage_{uuid.uuid4().hex}")
    async with start(config(url, chain="usage, retry")) as run, asyncio.TaskGroup() as callers:
        done, enough = list[str](), asyncio.Event()
        for _ in range(4):
            callers.create_task(calling(run, done, enough))
        await until(lambda: len(done) > 50)
        postgres.kill()
        try:
            gone = len(done)
            await until(lambda: len(done) > gone + 300)
            assert (await get(run, "/api/metrics/dashboard", status=503))["error"]["code"] == "database_unavailable"
        finally:
            await postgres.start()
        back = len(done)
        await until(lambda: len(done) > back + 50)
        enough.set()
        await until(lambda: not writer_of(run).pending)
    database = Database(url, 1, 10)
    assert {one["call"] for one in await rows(database, CALLS)} == set(done)
    await database.aclose()


async def test_ids_of_written_batches_are_kept_for_a_day(tmp_path: Path) -> None:
    database, clock = Database(f"sqlite:///{tmp_path / 'records.db'}", 1, 10), Clock()
    await database.migrate(FEATURE)
    async with database.writing() as connection:
        times = {"old": 0, "new": int(clock.time() * 1e6)}
        await connection.execute(insert(BATCHES), [{"id": id, "at": at} for id, at in times.items()])
    await Retention(None, database, clock).tidy()
    async with database.reading() as connection:
        assert list((await connection.execute(select(BATCHES.c.id))).scalars()) == ["new"]
    await database.aclose()
