"""Deletes expired files and abandoned uploads; one caller's files, exported or deleted."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from plugins.files.shapes import head
from plugins.files.store import Store, Wanted
from plugins.files.tables import FILES
from proxy.errors import NotFound
from proxy.types import JSON

EVERY: Final = 300.0
"""Seconds between two runs."""
SOME: Final = 100
"""Files read at once."""
LEFT: Final = 3600
"""Seconds without another byte after which an upload counts as abandoned."""


async def tidy(store: Store) -> None:
    """Several processes may do this at once."""
    old = store.now() - LEFT * 1_000_000
    left = FILES.c.status.in_(("receiving", "gone")) & (FILES.c.changed < old)
    while some := await store.all(left, SOME):
        for file in some:
            await store.drop(file.id)
    expired = (FILES.c.status == "whole") & (FILES.c.expires <= store.now())
    while some := await store.all(expired, SOME):
        for file in some:
            await store.remove(file)


@dataclass(frozen=True, slots=True)
class CallerFiles:
    """The files of one caller: exported with their bytes, or deleted."""

    store: Store
    name: str = "files"

    async def export(self, caller: str) -> AsyncIterator[JSON]:
        """For each file its description, then its bytes piece by piece; only one piece is in memory."""
        last, more = None, True
        while more:
            page, more = await self.store.beyond(caller, Wanted(limit=SOME), last)
            for file in page:
                yield head(file)
                number = 0
                with suppress(NotFound):  # deleted meanwhile
                    async for piece in self.store.pieces(caller, file.id):
                        yield {"id": file.id, "piece": number, "base64": base64.b64encode(piece).decode()}
                        number += 1
            last = page[-1] if page else None

    async def forget(self, caller: str) -> int:
        """Delete all files of a caller; returns how many there were."""
        whole = 0
        while some := await self.store.all((FILES.c.owner == caller) & (FILES.c.status != "gone"), SOME):
            for file in some:
                await self.store.remove(file)
            whole += len(some)
        return whole
