"""Vector stores in the database: collections with the additional fields of OpenAI's API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from sqlalchemy import ColumnElement, Select, case, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.documents.collections import Collections, readable
from plugins.documents.expiry import DAY, expired_stores, file_not_expired
from plugins.documents.index_tables import exclusive_lock
from plugins.documents.tables import COLLECTIONS, ITEMS, STORES
from plugins.documents.vectorstores.paging import PageBounds, page
from proxy.errors import BadCall, Denied, NotFound
from proxy.sql.database import Database
from proxy.sql.transaction_lock import transaction_lock
from proxy.types import JSON
from proxy.wire.ids import new_id

FRESH: Final = 60 * 1_000_000
"""Microseconds within which another use is not recorded."""
STATUSES: Final[Mapping[str, str]] = {"pending": "in_progress", "ready": "completed", "failed": "failed"}
CANCELLED: Final = "cancelled"
"""The `error` of a document whose batch was cancelled."""
COLUMNS: Final = ("id", "owner", "name", "about", "model", "dimensions", "at")


@dataclass(frozen=True, slots=True)
class VectorStore:
    """A collection as a vector store.  active: last use, Unix microseconds.  days: without use until it expires."""

    id: str
    owner: str
    name: str
    about: str
    model: str
    dimensions: int
    at: int
    metadata: Mapping[str, JSON]
    days: int | None
    active: int
    expired: bool

    @property
    def expires(self) -> int | None:
        return None if self.days is None else self.active + self.days * DAY


@dataclass(frozen=True, slots=True)
class Counts:
    """Documents by OpenAI status, and their approximate size."""

    by_status: Mapping[str, int]
    bytes: int

    def as_json(self) -> dict[str, int]:
        names = ("in_progress", "completed", "failed", "cancelled")
        told = {name: self.by_status.get(name, 0) for name in names}
        return {**told, "total": sum(told.values())}


class Stores:
    def __init__(self, collections: Collections) -> None:
        self.collections = collections

    @property
    def database(self) -> Database:
        return self.collections.database

    def now(self) -> int:
        return int(self.collections.clock.time() * 1e6)

    def made(self, row: Any) -> VectorStore:
        """A vector store from its row.  If its name was taken by another collection, or is empty, it is in `title`."""
        told = {name: getattr(row, name) for name in COLUMNS}
        if row.name == row.id:
            told["name"] = row.title or ""
        active = row.active or row.at
        over = row.days is not None and active + row.days * DAY <= self.now()
        metadata = orjson.loads(row.metadata) if row.metadata else {}
        return VectorStore(
            **told, metadata=metadata, days=row.days, active=active, expired=over or bool(row.expired or 0)
        )

    async def make(
        self, owner: str, name: str, about: str, metadata: Mapping[str, JSON] | None, days: int | None
    ) -> VectorStore:
        """Create a vector store.  Raises BadCall if the owner has too many collections."""
        now, id = self.now(), new_id("vs_")
        row = {"id": id, "owner": owner, "about": about, "model": self.collections.model, "place": id, "at": now}
        beside = {"collection": id, "metadata": dumped(metadata), "days": days, "active": now, "title": name}
        for called in (name or id, id):  # unlike these, collections need unique names
            try:
                async with self.database.writing(lasting=True) as connection:
                    await self.room(connection, owner)
                    await connection.execute(insert(COLLECTIONS).values(**row, name=called))
                    await connection.execute(insert(STORES).values(beside))
                break
            except IntegrityError:
                continue
        return await self.one(owner, id)

    async def room(self, connection: AsyncConnection, owner: str) -> None:
        most = self.collections.most
        await transaction_lock(connection, f"collections of {owner}")
        mine = select(func.count()).where((COLLECTIONS.c.owner == owner) & (COLLECTIONS.c.gone == 0))
        if (await connection.execute(mine)).scalar_one() >= most:
            raise BadCall(f"You have {most} collections, which is the maximum.", code="too_many_collections")

    def chosen(self) -> Select[Any]:
        beside = [STORES.c[name] for name in ("title", "metadata", "days", "active", "expired")]
        columns = [COLLECTIONS.c[name] for name in COLUMNS]
        return select(*columns, *beside).outerjoin(STORES, STORES.c.collection == COLLECTIONS.c.id)

    async def one(self, caller: str, id: str, param: str = "vector_store_id") -> VectorStore:
        """A vector store that the caller may read, by id.  Raises NotFound, also if the caller may not read it."""
        async with self.database.reading() as connection:
            row = (await connection.execute(self.chosen().where(readable(caller) & (COLLECTIONS.c.id == id)))).first()
        if row is None:
            raise unknown(id, param)
        return self.made(row)

    async def own(self, caller: str, id: str) -> VectorStore:
        """A vector store that the caller may change.  Raises NotFound, or Denied if it is shared for reading."""
        one = await self.one(caller, id)
        if one.owner != caller:
            raise Denied("This vector store is shared with you for reading only.", code="read_only")
        return one

    async def page(self, owner: str, cut: PageBounds) -> tuple[list[VectorStore], bool]:
        query = self.chosen().where((COLLECTIONS.c.owner == owner) & (COLLECTIONS.c.gone == 0))
        async with self.database.reading() as connection:
            rows, more = await page(connection, query, COLLECTIONS.c.at, COLLECTIONS.c.id, cut)
        return [self.made(row) for row in rows], more

    async def change(self, one: VectorStore, name: str | None, beside: Mapping[str, Any]) -> None:
        """beside: columns of STORES.  Raises NotFound if the vector store has been deleted."""
        if name is not None:
            await self.rename(one, name)
        now = self.now()
        values = {**beside} | ({} if name is None else {"title": name})
        active = case((expired_stores(now), STORES.c.active), else_=now)  # a change does not revive an expired store
        async with self.database.writing(lasting=True) as connection:
            if (await connection.execute(exclusive_lock(one.id))).first() is None:
                raise unknown(one.id)
            mine = update(STORES).where(STORES.c.collection == one.id)
            if not (await connection.execute(mine.values(**values, active=active))).rowcount:
                new = {"collection": one.id, "metadata": "{}", "active": now, **values}
                await connection.execute(insert(STORES).values(**new))

    async def rename(self, one: VectorStore, name: str) -> None:
        for called in (name, one.id):
            try:
                async with self.database.writing(lasting=True) as connection:
                    which = (COLLECTIONS.c.id == one.id) & (COLLECTIONS.c.gone == 0)
                    await connection.execute(update(COLLECTIONS).where(which).values(name=called))
                return
            except IntegrityError:
                continue

    async def used(self, several: Iterable[VectorStore]) -> None:
        """Record a use, which postpones the expiry."""
        now = self.now()
        ids = [one.id for one in several if one.active < now - FRESH]
        if ids:
            async with self.database.writing() as connection:
                alive = STORES.c.collection.in_(ids) & ~expired_stores(now)
                await connection.execute(update(STORES).where(alive).values(active=now))

    async def counts(self, several: Sequence[VectorStore]) -> dict[str, Counts]:
        dimensions = {one.id: one.dimensions for one in several}
        alive = [one.id for one in several if not one.expired]
        found = await self.counted(ITEMS.c.collection.in_(alive), ITEMS.c.collection)
        made = {}
        for id, rows in {id: [row for row in found if row.key == id] for id in dimensions}.items():
            size = sum(int(row.characters or 0) + 4 * dimensions[id] * int(row.chunks or 0) for row in rows)
            made[id] = Counts(by_status(rows), size)
        return made

    async def counted(self, where: ColumnElement[bool], key: ColumnElement[str]) -> Sequence[Any]:
        """Numbers and sizes of documents by key, status and whether they were cancelled."""
        cancelled = (ITEMS.c.error == CANCELLED).label("cancelled")
        sums = (func.sum(ITEMS.c.characters).label("characters"), func.sum(ITEMS.c.chunks).label("chunks"))
        query = select(key.label("key"), ITEMS.c.status, cancelled, func.count().label("documents"), *sums)
        query = query.where(where & file_not_expired(self.now())).group_by(key, ITEMS.c.status, cancelled)
        async with self.database.reading() as connection:
            return (await connection.execute(query)).all()


def unknown(id: str, param: str = "vector_store_id") -> NotFound:
    message = f"No vector store of yours has the id '{id[:100]}'."
    return NotFound(message, param=param, code="vector_store_not_found")


def by_status(rows: Iterable[Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        name = status_of(row.status, CANCELLED if row.cancelled else "")
        found[name] = found.get(name, 0) + row.documents
    return found


def status_of(status: str, error: str) -> str:
    """OpenAI's status of a document."""
    return CANCELLED if status == "failed" and error == CANCELLED else STATUSES[status]


def fits(status: str) -> ColumnElement[bool]:
    """A condition: documents with this OpenAI status."""
    if status == CANCELLED:
        return (ITEMS.c.status == "failed") & (ITEMS.c.error == CANCELLED)
    own = next(mine for mine, theirs in STATUSES.items() if theirs == status)
    return (ITEMS.c.status == own) & (ITEMS.c.error != CANCELLED)


def dumped(metadata: Mapping[str, JSON] | None) -> str:
    return orjson.dumps(dict(metadata or {})).decode()
