"""Collections of documents: their owners, readers and embedding models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Integer,
    Select,
    String,
    bindparam,
    case,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.documents.index_tables import cancel_move, exclusive_lock
from plugins.documents.tables import BATCHES, COLLECTIONS, ITEMS, JOBS, ORIGINS, PARTS, READERS, STORES, VALUES
from proxy.errors import BadCall, Denied, NotFound
from proxy.host import Clock
from proxy.sql.database import Database
from proxy.sql.transaction_lock import transaction_lock
from proxy.wire.ids import new_id

USUAL: Final = "default"
"""The name of the collection for documents that name none."""


@dataclass(frozen=True, slots=True)
class Collection:
    """model: embeds its texts.  dimensions: of its vectors, 0 before the first.  at: creation, Unix microseconds.

    place: its table in the index.  next_place, next_model, next_dimensions: the values after a move in progress, which
    the job `next_job` does; "" and 0 if there is none.
    """

    id: str
    owner: str
    name: str
    about: str
    model: str
    dimensions: int
    everyone: bool
    at: int
    place: str
    next_place: str = ""
    next_model: str = ""
    next_dimensions: int = 0
    next_job: str = ""

    @property
    def here(self) -> Target:
        return Target(self.place, self.model, self.dimensions)

    @property
    def onto(self) -> Target:
        return Target(self.next_place, self.next_model, self.next_dimensions)


@dataclass(frozen=True, slots=True)
class Target:
    """A table of the index, and the model of its vectors.  dimensions: 0 before the first vector."""

    place: str
    model: str
    dimensions: int


@dataclass(frozen=True, slots=True)
class Sharing:
    """Who may read a collection besides its owner: everyone, or these callers."""

    everyone: bool = False
    readers: tuple[str, ...] = ()


def readable(caller: str | BindParameter[str]) -> ColumnElement[bool]:
    """A condition: the collections that a caller may read.  This is the only place that decides it."""
    shared = select(READERS.c.collection).where(READERS.c.reader == caller)
    mine = (COLLECTIONS.c.owner == caller) | (COLLECTIONS.c.everyone == 1) | COLLECTIONS.c.id.in_(shared)
    return mine & (COLLECTIONS.c.gone == 0)


def collection_columns() -> Select[Any]:
    columns = (COLLECTIONS.c[name] for name in Collection.__slots__)
    return select(*columns)


CALLER = bindparam("caller", type_=String())
ALL = (
    collection_columns()
    .where(readable(CALLER))
    .order_by(COLLECTIONS.c.owner != CALLER, COLLECTIONS.c.at, COLLECTIONS.c.id)
    .limit(bindparam("most", type_=Integer()))
)
FILLED = ALL.where(COLLECTIONS.c.dimensions > 0)
"""Prepared once, because every search runs it."""


def collection_of(row: Any) -> Collection:
    return Collection(**{**row._mapping, "everyone": bool(row.everyone)})


def unknown(named: str, param: str) -> NotFound:
    message = f"No collection that you may read is called '{named[:100]}'."
    return NotFound(message, param=param, code="collection_not_found")


class Collections:
    def __init__(self, database: Database, clock: Clock, model: str, most: int) -> None:
        """model: the default embedding model.  most: maximum collections of one caller."""
        self.database = database
        self.clock = clock
        self.model = model
        self.most = most

    def now(self) -> int:
        return int(self.clock.time() * 1e6)

    async def make(self, owner: str, name: str, about: str, model: str | None, sharing: Sharing) -> Collection:
        """Create a collection.  Raises BadCall if the owner has one with this name, or too many."""
        id, now = new_id("col_"), self.now()
        one = Collection(id, owner, name, about, model or self.model, 0, sharing.everyone, now, id)
        try:
            async with self.database.writing(lasting=True) as connection:
                await transaction_lock(connection, f"collections of {owner}")
                mine = select(func.count()).where((COLLECTIONS.c.owner == owner) & (COLLECTIONS.c.gone == 0))
                if (await connection.execute(mine)).scalar_one() >= self.most:
                    raise BadCall(
                        f"You have {self.most} collections, which is the maximum.", code="too_many_collections"
                    )
                row = {field: getattr(one, field) for field in Collection.__slots__}
                await connection.execute(insert(COLLECTIONS).values(**{**row, "everyone": int(one.everyone)}))
                await share(connection, one.id, sharing.readers)
        except IntegrityError:
            message = f"You have a collection that is called '{name[:100]}' already."
            raise BadCall(message, param="name", code="collection_exists") from None
        return one

    async def own(self, owner: str, named: str | None, param: str = "collection") -> Collection:
        """The caller's own collection, by name or id; the default one is created when it is first used.

        Raises NotFound, or Denied if the caller may only read it.
        """
        if (found := await self.find(owner, named or USUAL)) is None:
            if (named or USUAL) != USUAL:
                raise unknown(str(named), param)
            try:
                return await self.make(owner, USUAL, "", None, Sharing())
            except BadCall as error:
                if error.code != "collection_exists":
                    raise
                return await self.one(owner, USUAL, param)  # created concurrently
        if found.owner != owner:
            raise Denied("This collection is shared with you for reading only.", param=param, code="read_only")
        return found

    async def one(self, caller: str, named: str, param: str = "collection") -> Collection:
        """A collection that the caller may read, by id, or by name if it is the caller's own.  Raises NotFound."""
        if (found := await self.find(caller, named)) is None:
            raise unknown(named, param)
        return found

    async def find(self, caller: str, named: str) -> Collection | None:
        mine = (COLLECTIONS.c.owner == caller) & (COLLECTIONS.c.name == named)
        query = collection_columns().where(readable(caller) & ((COLLECTIONS.c.id == named) | mine)).order_by(~mine)
        async with self.database.reading() as connection:
            row = (await connection.execute(query.limit(1))).first()
        return None if row is None else collection_of(row)

    async def by_id(self, id: str) -> Collection | None:
        """A collection of any owner, for the server's own work."""
        async with self.database.reading() as connection:
            query = collection_columns().where((COLLECTIONS.c.id == id) & (COLLECTIONS.c.gone == 0))
            row = (await connection.execute(query)).first()
        return None if row is None else collection_of(row)

    async def all(self, caller: str, most: int) -> list[Collection]:
        """The collections that the caller may read: its own first, each group oldest first."""
        given = {"caller": caller, "most": most}
        async with self.database.reading() as connection:
            return [collection_of(row) for row in await connection.execute(ALL, given)]

    async def filled(self, caller: str, most: int) -> list[Collection]:
        """Like `all`, but only collections that have vectors."""
        async with self.database.reading() as connection:
            return [collection_of(row) for row in await connection.execute(FILLED, {"caller": caller, "most": most})]

    async def owned(self, owner: str) -> list[Collection]:
        query = collection_columns().where((COLLECTIONS.c.owner == owner) & (COLLECTIONS.c.gone == 0))
        async with self.database.reading() as connection:
            return [collection_of(row) for row in await connection.execute(query)]

    async def readers(self, ids: Iterable[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {one: [] for one in ids}
        query = select(READERS).where(READERS.c.collection.in_(list(found))).order_by(READERS.c.reader)
        async with self.database.reading() as connection:
            for row in await connection.execute(query):
                found[row.collection].append(row.reader)
        return found

    async def change(self, one: Collection, values: dict[str, Any], sharing: Sharing | None) -> None:
        """Raises BadCall if another collection of the owner has the name, NotFound if this one has been removed."""
        if sharing is not None:
            values = {**values, "everyone": int(sharing.everyone)}
        try:
            async with self.database.writing(lasting=True) as connection:
                if (await connection.execute(exclusive_lock(one.id))).first() is None:
                    raise unknown(one.name, "id")
                if values:
                    await connection.execute(update(COLLECTIONS).where(COLLECTIONS.c.id == one.id).values(**values))
                if sharing is not None:
                    await share(connection, one.id, sharing.readers)
        except IntegrityError:
            message = "You have another collection of this name."
            raise BadCall(message, param="name", code="collection_exists") from None

    async def remove(self, one: Collection) -> int:
        """Remove a collection with its documents; its index is dropped later.  Gives the number of documents."""
        items = select(ITEMS.c.id).where(ITEMS.c.collection == one.id)
        which, now = COLLECTIONS.c.id == one.id, self.now()
        async with self.database.writing(lasting=True) as connection:
            await connection.execute(select(COLLECTIONS.c.id).where(which).with_for_update())
            await cancel_move(connection, one.id, now)
            for table in (PARTS, VALUES):
                await connection.execute(delete(table).where(table.c.item.in_(items)))
            for table in (ORIGINS, BATCHES, STORES):
                await connection.execute(delete(table).where(table.c.collection == one.id))
            items_gone = await connection.execute(delete(ITEMS).where(ITEMS.c.collection == one.id))
            await connection.execute(delete(JOBS).where(JOBS.c.collection == one.id))
            await share(connection, one.id, ())
            told = {"gone": 1, "owner": "", "name": one.id, "about": "", "at": now}  # frees the name
            await connection.execute(update(COLLECTIONS).where(which).values(**told))
        return int(items_gone.rowcount)

    async def forget(self, place: str) -> None:
        """Delete the row of a removed collection or place, after its table in the index was dropped."""
        async with self.database.writing(lasting=True) as connection:
            gone = (COLLECTIONS.c.place == place) & (COLLECTIONS.c.gone == 1)
            await connection.execute(delete(COLLECTIONS).where(gone))

    async def left(self, before: int) -> list[str]:
        """The index tables of what was removed before this time, in Unix microseconds."""
        async with self.database.reading() as connection:
            query = select(COLLECTIONS.c.place).where((COLLECTIONS.c.gone == 1) & (COLLECTIONS.c.at < before))
            return list((await connection.execute(query)).scalars())

    async def ids(self) -> list[str]:
        """The ids of all existing collections of all owners."""
        async with self.database.reading() as connection:
            query = select(COLLECTIONS.c.id).where(COLLECTIONS.c.gone == 0)
            return list((await connection.execute(query)).scalars())

    async def measured(self, place: str, dimensions: int) -> int:
        """The dimensions of a place's vectors, which its first vector sets."""
        now, onto = COLLECTIONS.c.place == place, COLLECTIONS.c.next_place == place
        async with self.database.writing() as connection:
            for which, name in ((now, "dimensions"), (onto, "next_dimensions")):
                first = update(COLLECTIONS).where(which & (COLLECTIONS.c[name] == 0))
                await connection.execute(first.values({name: dimensions}))
            lengths = case((now, COLLECTIONS.c.dimensions), else_=COLLECTIONS.c.next_dimensions)
            found = await connection.execute(select(lengths).where(now | onto))
            return int(found.scalar_one_or_none() or dimensions)


async def share(connection: AsyncConnection, id: str, readers: Sequence[str]) -> None:
    await connection.execute(delete(READERS).where(READERS.c.collection == id))
    if readers:
        rows = [{"collection": id, "reader": reader} for reader in dict.fromkeys(readers)]
        await connection.execute(insert(READERS), rows)
