"""Lookups by name are cached for a moment, and for longer while the database is down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.templates.counting import Counting
from plugins.templates.document import Document
from plugins.templates.feature import FEATURE
from plugins.templates.store import Store
from plugins.templates.tables import METADATA
from plugins.templates.uses import Uses
from plugins.templates.writing import Change, Limits, Writing
from proxy.sql.database import Database, DatabaseAway
from tests.clocks import Watch


class Leaving(Database):
    """A database whose reads fail while `away` is set."""

    away = False

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        if self.away:
            raise DatabaseAway("The database has gone.")
        async with super().reading() as connection:
            yield connection


async def test_concurrent_counts_of_several_processes_lose_nothing(database_url: str) -> None:
    database = Database(database_url, 10, 10)
    await database.migrate(FEATURE)
    host: Any = SimpleNamespace(database=database, clock=Watch())
    made = await Writing(Store(host), Limits(9, 9), frozenset()).create("ann", worded("one"))
    processes = [Counting(Uses(), host) for _ in range(8)]
    names = [f"t{n}" for n in range(20)]
    for index, one in enumerate(processes):
        one.uses.pending.update(dict.fromkeys(names if index % 2 else reversed(names), 1) | {made["id"]: 2})
    await asyncio.gather(*(one.flush() for one in processes))
    assert await processes[0].of_library() == dict.fromkeys(names, 8)
    ((popular,), rest) = (await Store(host).popular("ann", 5), [one.uses.pending for one in processes])
    assert popular["uses"] == 16 and not any(rest)
    await database.aclose()


def worded(text: str) -> Change:
    return Change(Document.model_validate({"name": "greet", "template": text}))


async def test_lookups_are_cached_for_a_second_and_for_a_minute_while_the_database_is_down(
    database_url: str,
) -> None:
    database, clock = Leaving(database_url, 3, 10), Watch()
    await database.migrate(FEATURE)
    host: Any = SimpleNamespace(database=database, clock=clock)
    here, there = (Store(host) for _ in range(2))
    writing, elsewhere = (Writing(store, Limits(9, 9), frozenset()) for store in (here, there))

    async def version() -> int:
        found = await here.find("greet", None, "ann", "name")
        return found.document.version if found else 0

    id = (await writing.create("ann", worded("one")))["id"]
    assert await version() == 1
    await elsewhere.change("ann", id, worded("two"))
    assert await version() == 1
    clock.move(1.1)
    assert await version() == 2
    await writing.change("ann", id, worded("three"))
    assert await version() == 3
    database.away = True
    clock.move(59)
    assert await version() == 3
    assert await here.find("no name", None, "ann", "name") is None
    for name, caller in (("greet", "bob"), ("other", "ann")):
        with pytest.raises(DatabaseAway):
            await here.find(name, None, caller, "name")
    clock.move(2)
    with pytest.raises(DatabaseAway):
        await version()
    await database.aclose()


async def test_the_migrations_create_the_tables_that_the_code_uses(new_database_url: str) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"version_table": "templates_version"})
        return list(compare_metadata(context, METADATA))

    database = Database(new_database_url, 3, 10)
    await database.migrate(FEATURE)
    async with database.reading() as connection:
        assert [one for one in await connection.run_sync(differences) if "templates_version" not in str(one)] == []
    await database.aclose()
