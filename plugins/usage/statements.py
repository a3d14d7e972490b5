"""Bulk statements, without the costs of SQLAlchemy per value, per compilation and per cursor."""

from __future__ import annotations

import re
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final

import orjson
from sqlalchemy import Column, DefaultClause, Insert, Table, Text, Update, bindparam, exc, insert, select, text, update
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection

LOCK: Final = zlib.crc32(b"gemmapy-proxy usage")
WHICH: Final = "which_row"
MANY: Final = 16
"""Minimum rows for which a single statement is worthwhile."""
FEW: Final = 16
"""Maximum columns that differ from row to row; each is searched for in the JSON of every row."""
LONG: Final = re.compile(rb"[0-9]{19}")
"""Digits of a number that may exceed SQLite's integers; its JSON functions would round it."""
Row = tuple[Any, ...]
Names = tuple[str, ...]


async def alone(connection: AsyncConnection) -> None:
    """Lock out other processes until the transaction ends; SQLite has only one writer anyway."""
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})


async def insert_rows(connection: AsyncConnection, table: Table, names: Names, rows: Sequence[Row]) -> None:
    """names: the columns of a row, in order.

    Columns in which all rows have the default value are left out: passing a value costs more than storing it.
    """
    if not rows:
        return
    usual, values = defaults(table, names), list(zip(*rows, strict=True))
    told = [at for at, column in enumerate(values) if column[0] != usual[at] or column.count(usual[at]) < len(rows)]
    columns = {names[at]: values[at] for at in told}
    if len(rows) >= MANY and reads_json(connection) and await insert_at_once(connection, table, columns):
        return
    statement, order = inserting(connection.dialect, table, tuple(columns))
    await run(connection, statement, order, list(zip(*columns.values(), strict=True)))


def reads_json(connection: AsyncConnection) -> bool:
    """Every SQLite since 3.38 has the JSON functions; in older ones they are optional."""
    return connection.dialect.name == "sqlite" and sqlite3.sqlite_version_info >= (3, 38)


async def insert_at_once(connection: AsyncConnection, table: Table, columns: Mapping[str, Sequence[Any]]) -> bool:
    """Insert with a single statement that reads the rows as JSON; False if that would be slower or lose precision.

    One statement per row would pass the GIL to the event loop and back each time: in a loaded server a row took four
    times as long as alone.
    """
    same = [name for name, column in columns.items() if column.count(column[0]) == len(column)]
    other = [name for name in columns if name not in same]
    if len(other) > FEW:
        return False
    rows = orjson.dumps(list(zip(*(columns[name] for name in other), strict=True)))
    if LONG.search(rows):
        return False
    given = (*(columns[name][0] for name in same), rows.decode())
    driver = await driver_of(connection)
    with as_sqlalchemy():
        await driver.execute_fetchall(reading(table.name, tuple(same), tuple(other)), given)
    return True


async def update_rows(connection: AsyncConnection, table: Table, names: Names, rows: Sequence[Row]) -> None:
    """rows: the new values, followed by the `id` of the row to update."""
    if rows:
        await run(connection, *updating(connection.dialect, table, names), rows)


async def rows_of(connection: AsyncConnection, table: Table, ids: Sequence[str]) -> Sequence[Row]:
    """The rows with these ids, all columns in order."""
    statement = finding(connection.dialect, table, len(ids))
    if (driver := await driver_of(connection)) is None:
        return [tuple(row) for row in await connection.exec_driver_sql(statement, tuple(ids))]
    with as_sqlalchemy():
        return list(await driver.execute_fetchall(statement, ids))


async def run(connection: AsyncConnection, statement: str, order: Sequence[int], rows: Sequence[Row]) -> None:
    """order: the positions in a row of the statement's values; () if they are in the same order."""
    given = list(map(itemgetter(*order), rows)) if order else list(rows)
    if (driver := await driver_of(connection)) is None:
        await connection.exec_driver_sql(statement, given)
        return
    with as_sqlalchemy():
        await driver.executemany(statement, given)


async def driver_of(connection: AsyncConnection) -> Any:
    """SQLite's own connection, in the same transaction: through SQLAlchemy a statement switches threads four times."""
    if connection.dialect.name != "sqlite":
        return None
    return (await connection.get_raw_connection()).driver_connection


@contextmanager
def as_sqlalchemy() -> Iterator[None]:
    """Raises SQLite's errors as SQLAlchemy would, without the parameters."""
    try:
        yield
    except sqlite3.Error as error:
        raise exc.DBAPIError.instance(None, None, error, sqlite3.Error, hide_parameters=True) from error


# --- SQL text, compiled once -------------------------------------------------------------------------


@lru_cache(64)
def defaults(table: Table, names: Names) -> Sequence[Any]:
    """The default of each column; `...` if a value is required."""
    return [default_of(table.c[name]) for name in names]


def default_of(column: Column[Any]) -> Any:
    if isinstance(given := column.server_default, DefaultClause):
        return str(given.arg) if isinstance(column.type, Text) else int(str(given.arg))
    return None if column.nullable else ...


@lru_cache(256)
def inserting(dialect: Dialect, table: Table, names: Names) -> tuple[str, Sequence[int]]:
    return written(dialect, insert(table), names)


@lru_cache(256)
def reading(table: str, same: Names, other: Names) -> str:
    """same: columns with one value for all rows, which come first; the others are in the rows in this order."""
    values = ["?"] * len(same) + [f"json_extract(value, '$[{at}]')" for at in range(len(other))]
    names, read = ", ".join(same + other), ", ".join(values)
    return f"INSERT INTO {table} ({names}) SELECT {read} FROM json_each(?)"  # noqa: S608  (all names are ours)


@lru_cache(64)
def updating(dialect: Dialect, table: Table, names: Names) -> tuple[str, Sequence[int]]:
    return written(dialect, update(table).where(table.c.id == bindparam(WHICH)), (*names, WHICH))


@lru_cache(64)
def finding(dialect: Dialect, table: Table, count: int) -> str:
    ids: list[Any] = [bindparam(f"id_{number}") for number in range(count)]
    return str(select(table).where(table.c.id.in_(ids)).compile(dialect=dialect))


def written(dialect: Dialect, statement: Insert | Update, names: Names) -> tuple[str, Sequence[int]]:
    """The SQL text, and the position in `names` of each of its values; () if they are in that order."""
    compiled = statement.compile(dialect=dialect, column_keys=list(names))
    order = tuple(map(names.index, getattr(compiled, "positiontup", None) or names))
    return str(compiled), () if order == tuple(range(len(names))) else order
