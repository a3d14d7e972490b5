"""Writes to the database how often each template was used."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Final

from sqlalchemy import bindparam, select, update

from plugins.templates.document import PREFIX
from plugins.templates.tables import CUSTOM, USES
from plugins.templates.uses import Uses
from proxy.errors import Busy
from proxy.host import Host

EVERY: Final = 5.0
"""Seconds between two writes."""
PATIENCE: Final = 2.0
"""Seconds that writing the last counts may take at shutdown."""


class Counting:
    """Adds the pending counts to the database every few seconds."""

    def __init__(self, uses: Uses, host: Host) -> None:
        self.uses = uses
        self.host = host

    async def run(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            with suppress(Busy):  # logged elsewhere; what was not written stays pending
                await self.flush()

    async def close(self) -> None:
        with suppress(Busy, TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self.flush()

    async def flush(self) -> None:
        """Write the pending counts.  Raises DatabaseAway."""
        writing, self.uses.pending = self.uses.pending, Counter()
        if not writing:
            return
        try:
            await self.add(writing)
        except BaseException:
            self.uses.pending += writing
            raise

    async def add(self, counts: Counter[str]) -> None:
        # Sorted, so that two processes that update the same rows cannot deadlock.
        own = [{"which": id, "more": counts[id]} for id in sorted(counts) if id.startswith(PREFIX)]
        others = [{"name": name, "uses": counts[name]} for name in sorted(counts) if not name.startswith(PREFIX)]
        database = self.host.database
        async with database.writing() as connection:
            if own:  # templates that were deleted meanwhile have no row
                more = update(CUSTOM).where(CUSTOM.c.id == bindparam("which"))
                await connection.execute(more.values(uses=CUSTOM.c.uses + bindparam("more")), own)
            if others:
                made = database.insert(USES).values(others)
                whole = {"uses": USES.c.uses + made.excluded.uses}
                await connection.execute(made.on_conflict_do_update(index_elements=[USES.c.name], set_=whole))

    async def of_library(self) -> Counter[str]:
        """Uses of the library's templates, by name.  Raises DatabaseAway."""
        await self.flush()
        async with self.host.database.reading() as connection:
            return Counter({row.name: row.uses for row in await connection.execute(select(USES))})
