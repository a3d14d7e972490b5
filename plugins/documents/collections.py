"""Collections: whose documents are together, who may read them, and which model embeds them."""

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

from plugins.documents.places import abandon, locked
from plugins.documents.tables import BATCHES, COLLECTIONS, ITEMS, JOBS, ORIGINS, PARTS, READERS, STORES, VALUES
from proxy.errors import BadCall, Denied, NotFound
from proxy.host import Clock
from proxy.sql.database import Database
from proxy.sql.turns import turn
from proxy.wire.ids import new_id

USUAL: Final = "default"
"""What a caller's documents are in that were put nowhere else."""


@dataclass(frozen=True, slots=True)
class Collection:
    """model: which embeds its texts.  dimensions: of its vectors, 0 until there is one.  at: microseconds.

    place: its table in the index.  next_place, next_model, next_dimensions: what these will be when it has moved, which
    the job does that next_job names; "" and 0 where it stays.
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
    """A table of the index, and the model whose vectors are in it.  dimensions: 0 until there is one."""

    place: str
    model: str
    dimensions: int


@dataclass(frozen=True, slots=True)
class Sharing:
    """Who may read: everyone, or these callers besides the owner."""

    everyone: bool = False
    readers: tuple[str, ...] = ()


def readable(caller: str | BindParameter[str]) -> ColumnElement[bool]:
    """Which collections a caller may read: the only place that says so."""
    shared = select(READERS.c.collection).where(READERS.c.reader == caller)
    mine = (COLLECTIONS.c.owner == caller) | (COLLECTIONS.c.everyone == 1) | COLLECTIONS.c.id.in_(shared)
    return mine & (COLLECTIONS.c.gone == 0)


def chosen() -> Select[Any]:
    columns = (COLLECTIONS.c[name] for name in Collection.__slots__)
    return select(*columns)


CALLER = bindparam("caller", type_=String())
ALL = (
    chosen()
    .where(readable(CALLER))
    .order_by(COLLECTIONS.c.owner != CALLER, COLLECTIONS.c.at, COLLECTIONS.c.id)
    .limit(bindparam("most", type_=Integer()))
)
FILLED = ALL.where(COLLECTIONS.c.dimensions > 0)
"""Made once, because every search asks it."""


def made(row: Any) -> Collection:
    return Collection(**{**row._mapping, "everyone": bool(row.everyone)})


def unknown(named: str, param: str) -> NotFound:
    message = f"No collection that you may read is called '{named[:100]}'."
    return NotFound(message, param=param, code="collection_not_found")


class Collections:
    def __init__(self, database: Database, clock: Clock, model: str, most: int) -> None:
        """model: which embeds unless a collection says otherwise.  most: collections of one caller."""
        self.database = database
        self.clock = clock
        self.model = model
        self.most = most

    def now(self) -> int:
        return int(self.clock.time() * 1e6)

    async def make(self, owner: str, name: str, about: str, model: str | None, sharing: Sharing) -> Collection:
        """Raises BadCall where the owner has one of this name, or too many."""
        id, now = new_id("col_"), self.now()
        one = Collection(id, owner, name, about, model or self.model, 0, sharing.everyone, now, id)
        try:
            async with self.database.writing(lasting=True) as connection:
                await turn(connection, f"collections of {owner}")
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
        """The caller's own, by name or id; that for usual documents is made when it is first named.

        Raises NotFound, or Denied for another's that the caller may only read.
        """
        if (found := await self.find(owner, named or USUAL)) is None:
            if (named or USUAL) != USUAL:
                raise unknown(str(named), param)
            try:
                return await self.make(owner, USUAL, "", None, Sharing())
            except BadCall as error:
                if error.code != "collection_exists":
                    raise
                return await self.one(owner, USUAL, param)  # somebody else has made it meanwhile
        if found.owner != owner:
            raise Denied("This collection is shared with you for reading only.", param=param, code="read_only")
        return found

    async def one(self, caller: str, named: str, param: str = "collection") -> Collection:
        """One that the caller may read, by id, or by name if it is the caller's own.  Raises NotFound."""
        if (found := await self.find(caller, named)) is None:
            raise unknown(named, param)
        return found

    async def find(self, caller: str, named: str) -> Collection | None:
        mine = (COLLECTIONS.c.owner == caller) & (COLLECTIONS.c.name == named)
        query = chosen().where(readable(caller) & ((COLLECTIONS.c.id == named) | mine)).order_by(~mine)
        async with self.database.reading() as connection:
            row = (await connection.execute(query.limit(1))).first()
        return None if row is None else made(row)

    async def by_id(self, id: str) -> Collection | None:
        """Whosever it is: for the server's own work."""
        async with self.database.reading() as connection:
            query = chosen().where((COLLECTIONS.c.id == id) & (COLLECTIONS.c.gone == 0))
            row = (await connection.execute(query)).first()
        return None if row is None else made(row)

    async def all(self, caller: str, most: int) -> list[Collection]:
        """Those that the caller may read, its own first, then the oldest first."""
        given = {"caller": caller, "most": most}
        async with self.database.reading() as connection:
            return [made(row) for row in await connection.execute(ALL, given)]

    async def filled(self, caller: str, most: int) -> list[Collection]:
        """The same of those in which there is something to be found."""
        async with self.database.reading() as connection:
            return [made(row) for row in await connection.execute(FILLED, {"caller": caller, "most": most})]

    async def owned(self, owner: str) -> list[Collection]:
        query = chosen().where((COLLECTIONS.c.owner == owner) & (COLLECTIONS.c.gone == 0))
        async with self.database.reading() as connection:
            return [made(row) for row in await connection.execute(query)]

    async def readers(self, ids: Iterable[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {one: [] for one in ids}
        query = select(READERS).where(READERS.c.collection.in_(list(found))).order_by(READERS.c.reader)
        async with self.database.reading() as connection:
            for row in await connection.execute(query):
                found[row.collection].append(row.reader)
        return found

    async def change(self, one: Collection, values: dict[str, Any], sharing: Sharing | None) -> None:
        """Raises BadCall where another of the owner's has the name, and NotFound where it has gone meanwhile."""
        if sharing is not None:
            values = {**values, "everyone": int(sharing.everyone)}
        try:
            async with self.database.writing(lasting=True) as connection:
                if (await connection.execute(locked(one.id))).first() is None:
                    raise unknown(one.name, "id")
                if values:
                    await connection.execute(update(COLLECTIONS).where(COLLECTIONS.c.id == one.id).values(**values))
                if sharing is not None:
                    await share(connection, one.id, sharing.readers)
        except IntegrityError:
            message = "You have another collection of this name."
            raise BadCall(message, param="name", code="collection_exists") from None

    async def remove(self, one: Collection) -> int:
        """It is gone for everybody at once; its index goes after it.  How many documents it had."""
        items = select(ITEMS.c.id).where(ITEMS.c.collection == one.id)
        which, now = COLLECTIONS.c.id == one.id, self.now()
        async with self.database.writing(lasting=True) as connection:
            await connection.execute(select(COLLECTIONS.c.id).where(which).with_for_update())
            await abandon(connection, one.id, now)
            for table in (PARTS, VALUES):
                await connection.execute(delete(table).where(table.c.item.in_(items)))
            for table in (ORIGINS, BATCHES, STORES):
                await connection.execute(delete(table).where(table.c.collection == one.id))
            items_gone = await connection.execute(delete(ITEMS).where(ITEMS.c.collection == one.id))
            await connection.execute(delete(JOBS).where(JOBS.c.collection == one.id))
            await share(connection, one.id, ())
            told = {"gone": 1, "owner": "", "name": one.id, "about": "", "at": now}  # the name is free for another
            await connection.execute(update(COLLECTIONS).where(which).values(**told))
        return int(items_gone.rowcount)

    async def forget(self, place: str) -> None:
        """Where something was that is gone, once nothing is there."""
        async with self.database.writing(lasting=True) as connection:
            gone = (COLLECTIONS.c.place == place) & (COLLECTIONS.c.gone == 1)
            await connection.execute(delete(COLLECTIONS).where(gone))

    async def left(self, before: int) -> list[str]:
        """Places of what has gone before then."""
        async with self.database.reading() as connection:
            query = select(COLLECTIONS.c.place).where((COLLECTIONS.c.gone == 1) & (COLLECTIONS.c.at < before))
            return list((await connection.execute(query)).scalars())

    async def ids(self) -> list[str]:
        """Of all that are there, whosever they are."""
        async with self.database.reading() as connection:
            query = select(COLLECTIONS.c.id).where(COLLECTIONS.c.gone == 0)
            return list((await connection.execute(query)).scalars())

    async def measured(self, place: str, dimensions: int) -> int:
        """How long the vectors of a place are: as its first one was."""
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
