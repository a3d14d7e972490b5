"""Deletes the documents of vector stores that were not used for the time they are kept, and marks them as expired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import delete, select, update

from plugins.documents.expiry import expired_stores
from plugins.documents.index_tables import cancel_move, schedule_deletion
from plugins.documents.runner import Runner
from plugins.documents.tables import BATCHES, COLLECTIONS, COPIES, ITEMS, JOBS, ORIGINS, PARTS, STORES, VALUES
from plugins.documents.vectorstores.stores import Stores
from proxy.wire.ids import new_id

EVERY: Final = 300.0
"""Seconds between two clean-ups."""
SOME: Final = 20
"""Maximum vector stores per clean-up."""
CHUNK: Final = 50
"""Documents deleted in one transaction."""
BEGUN, DONE = 1, 2


@dataclass(frozen=True, slots=True)
class Expiring:
    stores: Stores
    runner: Runner

    async def tidy(self) -> None:
        """Empty expired vector stores.  Several processes may run it."""
        which = expired_stores(self.stores.now()) & (STORES.c.expired != DONE)
        async with self.stores.database.reading() as connection:
            ids = list((await connection.execute(select(STORES.c.collection).where(which).limit(SOME))).scalars())
        for id in ids:
            async with self.stores.database.writing(lasting=True) as connection:
                await connection.execute(select(COLLECTIONS.c.id).where(COLLECTIONS.c.id == id).with_for_update())
                mine = STORES.c.collection == id  # `which` is checked again, since it may have been used meanwhile
                begun = await connection.execute(update(STORES).where(mine & which).values(expired=BEGUN))
            if begun.rowcount:
                await self.empty(id)

    async def empty(self, id: str) -> None:
        """Delete all documents of a vector store; its table in the index is dropped by the sweep."""
        while not await self.over(id):
            while await self.fewer(id):
                continue

    async def over(self, id: str) -> bool:
        """Finish the expiry if no documents are left; False if there are some, such as ones added meanwhile."""
        now, which = self.stores.now(), COLLECTIONS.c.id == id
        some = select(ITEMS.c.id).where(ITEMS.c.collection == id).limit(1)
        async with self.stores.database.writing(lasting=True) as connection:
            row = (await connection.execute(select(COLLECTIONS.c.place).where(which).with_for_update())).first()
            if (await connection.execute(some)).first() is not None:
                return False
            if row is not None:
                await cancel_move(connection, id, now)
                await schedule_deletion(connection, row.place, now)
                elsewhere = {"place": new_id("col_"), "dimensions": 0}
                await connection.execute(update(COLLECTIONS).where(which).values(**elsewhere))
            await connection.execute(delete(BATCHES).where(BATCHES.c.collection == id))
            await connection.execute(update(STORES).where(STORES.c.collection == id).values(expired=DONE))
        return True

    async def fewer(self, id: str) -> bool:
        some = select(ITEMS.c.id).where(ITEMS.c.collection == id).limit(CHUNK)
        async with self.stores.database.writing() as connection:
            await connection.execute(select(COLLECTIONS.c.id).where(COLLECTIONS.c.id == id).with_for_update())
            items = list((await connection.execute(some)).scalars())
            jobs = list((await connection.execute(select(JOBS.c.id).where(JOBS.c.item.in_(items)))).scalars())
            for table in (PARTS, VALUES, JOBS, COPIES, ORIGINS):
                await connection.execute(delete(table).where(table.c.item.in_(items)))
            await connection.execute(delete(ITEMS).where(ITEMS.c.id.in_(items)))
        for job in jobs:
            self.runner.stop(job)
        return bool(items)
