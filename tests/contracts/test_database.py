"""The contract of every kind of database."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sqlite3
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from proxy.errors import ConfigError
from proxy.sql.database import Database, DatabaseAway
from proxy.sql.feature import Feature
from proxy.sql.sqlite import Connection as Lite
from tests.conftest import Start
from tests.servers import PostgresServer, free_port

NOTES = Feature("test", Path(__file__).parent / "history")
ADD = text("INSERT INTO test_notes (id, text, at) VALUES (:id, 'a', 0)")
COUNT = text("SELECT count(*) FROM test_notes")


@pytest.fixture
async def database(new_database_url: str) -> AsyncIterator[Database]:
    database = Database(new_database_url, 3, 10)
    await database.migrate(NOTES)
    yield database
    await database.aclose()


async def count(database: Database) -> int:
    async with database.reading() as connection:
        return int((await connection.execute(COUNT)).scalar_one())


async def add(database: Database, *ids: int) -> None:
    async with database.writing() as connection:
        for one in ids:
            await connection.execute(ADD, {"id": one})


async def test_a_committed_transaction_stays_and_a_failed_one_leaves_nothing(database: Database) -> None:
    await add(database, 1, 2)
    with pytest.raises(IntegrityError):
        await add(database, 3, 1)
    assert await count(database) == 2


async def test_concurrent_writers_lose_nothing(database: Database) -> None:
    async def look_and_add(number: int) -> None:
        async with database.writing() as connection:
            (await connection.execute(COUNT)).one()  # reads first, like code that checks before it writes
            await connection.execute(ADD, {"id": number})

    await asyncio.gather(*(look_and_add(number) for number in range(50)))
    assert await count(database) == 50


async def test_two_processes_can_write_at_once(database: Database, new_database_url: str) -> None:
    other = Database(new_database_url, 3, 10)
    try:
        await asyncio.gather(*(add(one, 2 * n + odd) for odd, one in enumerate((database, other)) for n in range(20)))
        assert await count(other) == 40
    finally:
        await other.aclose()


async def test_alone_lets_one_process_in_at_a_time(database: Database, new_database_url: str) -> None:
    inside, most = 0, 0

    async def enter(one: Database) -> None:
        nonlocal inside, most
        async with one.alone("table"):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.01)
            inside -= 1

    other = Database(new_database_url, 3, 10)
    try:
        await asyncio.gather(*(enter(one) for one in (database, other) for _ in range(3)))
        with pytest.raises(ValueError, match="why"):
            async with database.alone("table"):
                raise ValueError("why")
        await enter(other)  # a failure inside lets the next one in
    finally:
        await other.aclose()
    assert most == 1


async def test_alone_does_not_block_other_writers(database: Database, new_database_url: str) -> None:
    other = Database(new_database_url, 3, 2)
    try:
        async with asyncio.timeout(5), database.alone("table"):
            await add(database, 1)
            await add(other, 2)
        assert await count(database) == 2
    finally:
        await other.aclose()


async def test_alone_is_free_again_after_its_process_was_killed(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'records.db'}", 1, 10)
    holds = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    path = str(tmp_path / "records.db-alone")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", holds, path, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None and await process.stdout.readline()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1), database.alone("table"):
            pass
    process.kill()
    async with asyncio.timeout(5), database.alone("table"):
        await process.wait()
    await database.aclose()


async def test_a_busy_writer_does_not_starve_others(tmp_path: Path) -> None:
    """With SQLite's own busy handler, which retries ten times a second, this would take ten times as long."""
    path, over = tmp_path / "records.db", threading.Event()
    database = Database(f"sqlite:///{path}", 1, 10)
    await database.migrate(NOTES)

    def busy() -> None:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as other:
            while not over.is_set():
                other.execute("BEGIN IMMEDIATE")
                time.sleep(0.05)
                other.execute("COMMIT")
                time.sleep(0.001)

    task = asyncio.ensure_future(asyncio.to_thread(busy))
    try:
        async with asyncio.timeout(10):
            for number in range(15):
                await add(database, number)
    finally:
        over.set()
        await task
        await database.aclose()


async def test_a_writer_cancelled_while_waiting_leaves_no_lock(tmp_path: Path) -> None:
    databases = [Database(f"sqlite:///{tmp_path}/records.db", 1, 2) for _ in range(2)]
    await databases[0].migrate(NOTES)
    async with databases[1].writing() as connection:
        await connection.execute(ADD, {"id": 1})
        waiting = asyncio.ensure_future(add(databases[0], 2))
        await asyncio.sleep(0.1)  # by now it waits for the lock, which it gets only after it was cancelled
        waiting.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError) as left:  # the traceback keeps its statements alive
        await waiting
    await add(databases[1], 3)
    assert await count(databases[0]) == 2 and left.traceback
    for one in databases:
        await one.aclose()


async def test_waiting_too_long_for_another_writer_is_an_error_that_says_so(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/test.db", 3, 0.2)
    await database.migrate(NOTES)
    async with database.writing():
        async with asyncio.timeout(5):
            with pytest.raises(DatabaseAway) as told:
                await add(database, 1)
        assert "other processes that write" in told.value.why
    await add(database, 1)
    assert await count(database) == 1
    await database.aclose()


async def test_the_waits_for_a_turn_and_for_another_process_share_one_time_limit(
    tmp_path: Path,
) -> None:
    here, there = (Database(f"sqlite:///{tmp_path}/records.db", 1, patience) for patience in (1, 10))
    await here.migrate(NOTES)
    async with there.writing():
        await here.turn.acquire()
        asyncio.get_running_loop().call_later(0.9, here.turn.release)
        began = time.monotonic()
        with pytest.raises(DatabaseAway):
            await add(here, 1)
        assert time.monotonic() - began < 1.6  # 1.9 if each wait had its own limit
    for one in (here, there):
        await one.aclose()


async def test_a_start_without_new_migrations_does_not_wait_for_writers(tmp_path: Path) -> None:
    one, two = (Database(f"sqlite:///{tmp_path}/records.db", 1, 1) for _ in range(2))
    await one.migrate(NOTES)
    async with one.writing() as connection:
        await connection.execute(ADD, {"id": 1})
        await two.migrate(NOTES)
    for database in (one, two):
        await database.aclose()


async def test_of_several_processes_one_migrates_and_the_others_wait(new_database_url: str) -> None:
    several = [Database(new_database_url, 2, 30) for _ in range(5)]
    try:
        await asyncio.gather(*(one.migrate(NOTES) for one in several))
        await several[0].migrate(NOTES)
        assert [await count(one) for one in several] == [0] * 5
    finally:
        for one in several:
            await one.aclose()


async def test_tables_of_a_newer_version_are_a_clear_error(new_database_url: str) -> None:
    newer, older = (Database(new_database_url, 1, 5) for _ in range(2))
    await newer.migrate(NOTES)
    async with newer.writing() as connection:
        await connection.execute(text("UPDATE test_version SET version_num = 'later'"))
    with pytest.raises(ConfigError, match="`test` were made by a newer version"):
        await older.migrate(NOTES)
    for one in (newer, older):
        await one.aclose()


async def test_an_unreachable_database_is_an_error_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    database = Database(f"postgresql://me:canary@127.0.0.1:{port}/x", 1, 1)
    with pytest.raises(DatabaseAway) as failed:
        await database.migrate(NOTES)
    assert str(failed.value) == "The database does not answer.", "callers need not learn its address"
    assert f"//me:***@127.0.0.1:{port}/x does not answer" in failed.value.why and failed.value.why in caplog.text
    assert "canary" not in caplog.text
    await database.aclose()


async def test_a_killed_database_server_is_used_again_once_it_is_back(postgres: PostgresServer) -> None:
    if postgres.process is None:
        await postgres.start()
    database = Database(await postgres.create(f"killed_{uuid.uuid4().hex}"), 2, 5)
    await database.migrate(NOTES)
    postgres.kill()
    try:
        for _ in range(2):
            with pytest.raises(DatabaseAway):
                await count(database)
    finally:
        await postgres.start()
    async with asyncio.timeout(10):
        while True:
            try:
                assert await count(database) == 0
                break
            except DatabaseAway:
                await asyncio.sleep(0.05)
    await database.aclose()


@pytest.mark.parametrize("writes", [True, False])
async def test_a_database_server_that_hangs_is_soon_an_error(postgres: PostgresServer, writes: bool) -> None:
    if postgres.process is None:
        await postgres.start()
    database = Database(await postgres.create(f"silent_{uuid.uuid4().hex}"), 1, 2)
    await database.migrate(NOTES)
    async with database.reading() as connection:
        backend = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
    os.kill(backend, signal.SIGSTOP)
    try:
        async with asyncio.timeout(10):  # a third of the statement timeout
            with pytest.raises(DatabaseAway, match="does not answer"):
                await (add(database, 1) if writes else count(database))
    finally:
        os.kill(backend, signal.SIGCONT)
    assert await count(database) == 0
    await database.aclose()


async def test_closing_does_not_wait_for_a_server_that_hangs(
    postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    if postgres.process is None:
        await postgres.start()
    database = Database(postgres.url(), 1, 5)
    async with database.reading() as connection:
        backend = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
    os.kill(backend, signal.SIGSTOP)
    try:
        async with asyncio.timeout(10):
            await database.aclose()
    finally:
        os.kill(backend, signal.SIGCONT)
    assert not caplog.records


AWAY = ("57P03", "53300", "08006", "57014", "55P03", "25P03")


@pytest.mark.parametrize(("state", "away"), [*((one, True) for one in AWAY), ("23514", False)])
async def test_errors_of_a_server_that_starts_stops_or_is_full_mean_that_it_is_unavailable(
    postgres: PostgresServer, state: str, away: bool
) -> None:
    if postgres.process is None:
        await postgres.start()
    database = Database(postgres.url(), 1, 5)
    with pytest.raises(DatabaseAway if away else DBAPIError):
        async with database.reading() as connection:
            await connection.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{state}'; END $$"))
    await database.aclose()


async def test_a_read_only_session_is_replaced(postgres: PostgresServer) -> None:
    if postgres.process is None:
        await postgres.start()
    database = Database(await postgres.create(f"test_{uuid.uuid4().hex}"), 1, 5)
    async with database.reading() as connection:  # the pool's only connection
        await connection.execute(text("SET default_transaction_read_only = on"))
    with pytest.raises(DatabaseAway):
        await database.migrate(NOTES)
    await database.migrate(NOTES)
    await add(database, 1)
    await database.aclose()


async def test_a_file_that_cannot_be_written_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, why in (("file/records.db", "/file: File exists"), ("", ": Permission denied")):  # "": the folder
        database = Database(f"sqlite:///{tmp_path}/{path}", 1, 1)
        with pytest.raises(ConfigError, match=f"{path} cannot be written: .*{why}"):
            await database.migrate(NOTES)
        await database.aclose()


async def test_a_folder_that_cannot_be_written_is_an_error_although_the_file_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "records.db").touch()
    monkeypatch.setattr("os.access", lambda path, _: path != tmp_path)  # patched, as root may write anywhere
    database = Database(f"sqlite:///{tmp_path}/records.db", 1, 1)
    with pytest.raises(ConfigError, match=f"cannot be written: {tmp_path}: Permission denied"):
        await database.migrate(NOTES)
    await database.aclose()


async def test_a_file_that_is_not_a_database_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Not a database, but long enough to be looked at as one. " * 20)
    database = Database(f"sqlite:///{tmp_path}/notes.txt", 1, 1)
    with pytest.raises(ConfigError, match=r"notes\.txt cannot be used: .*file is not a database$"):
        await database.migrate(NOTES)
    await database.aclose()


async def test_writes_after_another_process_has_opened_and_closed_the_file_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "records.db"
    database = Database(f"sqlite:///{file}", 2, 10)
    for _ in range(2):  # twice, as for the tables of two features
        await database.migrate(NOTES)
        database.migrated.clear()
    look = "import sqlite3, sys; one = sqlite3.connect(sys.argv[1]); print(*one.execute(sys.argv[2])); one.close()"

    async def looked() -> bytes:
        command = (sys.executable, "-c", look, str(file), COUNT.text)
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        return (await process.communicate())[0].strip()

    assert await looked() == b"(0,)"
    await add(database, 1)
    assert await looked() == b"(1,)"
    await database.aclose()


def test_a_connection_collected_after_its_loop_closed_ends_its_thread(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:

        async def opened() -> Lite:
            await (made := Lite(str(tmp_path / "a.db"), 1))
            return made

        one, loop = runner.run(opened()), runner.get_loop()
    thread = one._thread
    asyncio.set_event_loop(loop)  # the loop, which is closed by now
    del one
    gc.collect()
    asyncio.set_event_loop(None)
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://", "postgresql://h", "canary"])
async def test_an_invalid_database_url_is_refused_without_showing_it(start: Start, url: str) -> None:
    with pytest.raises(Exception, match="a database is") as failed:
        async with start(f"database: {{url: '{url}'}}\nchains: {{chat: []}}\n"):
            pass
    assert "canary" not in str(failed.value)


async def test_closing_also_closes_connections_detached_from_the_pool(postgres: PostgresServer) -> None:
    if postgres.process is None:
        await postgres.start()
    database = Database(await postgres.create("forgotten"), 2, 10)
    held = await database.engine.raw_connection()
    made = held.driver_connection
    held.detach()
    await database.aclose()
    assert made is not None and made.is_closed()


async def test_a_connection_made_while_the_database_closes_is_closed_too(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if postgres.process is None:
        await postgres.start()
    waits, go, made, connect = asyncio.Event(), asyncio.Event(), list[asyncpg.Connection](), asyncpg.connect

    async def slow(**told: Any) -> asyncpg.Connection:
        waits.set()
        await go.wait()
        made.append(await connect(**told))
        return made[0]

    monkeypatch.setattr(asyncpg, "connect", slow)
    database = Database(postgres.url(), 1, 10)
    looking = asyncio.ensure_future(look(database))
    await waits.wait()
    await database.aclose()
    go.set()
    with pytest.raises(DatabaseAway):
        await looking
    assert made[0].is_closed()


async def look(database: Database) -> None:
    async with database.reading() as connection:
        await connection.execute(text("SELECT 1"))


async def test_a_closed_database_starts_no_thread(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a.db'}", 1, 5)
    await look(database)
    await database.aclose()
    with pytest.raises(DatabaseAway):
        await look(database)
    assert not [one for one in database.made if one._thread.is_alive()]


async def test_a_cancelled_close_still_closes_every_connection(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if postgres.process is None:
        await postgres.start()
    database = Database(postgres.url(), 1, 10)
    await look(database)
    (made,) = database.made

    async def endless(engine: AsyncEngine) -> None:
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(AsyncEngine, "dispose", endless)
        ending = asyncio.ensure_future(database.aclose())
        await asyncio.sleep(0)
        ending.cancel()
        await asyncio.wait([ending])
    assert ending.cancelled() and made.is_closed()
    await database.aclose()


async def test_a_connection_that_was_stopped_can_still_be_closed(tmp_path: Path) -> None:
    connection = Lite(str(tmp_path / "a.db"), 1)
    await connection
    connection.stop()
    async with asyncio.timeout(30):
        await connection.close()
        await connection.ended(5)
    assert not connection._thread.is_alive()


async def test_closing_a_database_ends_its_threads(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a.db'}", 1, 5)
    slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) SELECT max(i) FROM n"

    async def looking() -> None:
        async with database.reading() as connection:
            await connection.execute(text(slow))

    with suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await looking()
    (made,) = database.made
    await database.aclose()
    assert not made._thread.is_alive(), "it would deliver its result to a closed event loop"
