"""What has expired goes, and what never became whole."""

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
"""Seconds between two times."""
SOME: Final = 100
"""Files that are looked at together."""
LEFT: Final = 3600
"""Seconds without another byte, after which an upload has been left."""


async def tidy(store: Store) -> None:
    """It does no harm where several processes do it."""
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
class Holding:
    """The files of one caller: told with their bytes, or deleted."""

    store: Store
    name: str = "files"

    async def told(self, caller: str) -> AsyncIterator[JSON]:
        """Of each file what is known, and then its bytes in pieces: no more than one of them is in memory."""
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
        """How many files there were."""
        whole = 0
        while some := await self.store.all((FILES.c.owner == caller) & (FILES.c.status != "gone"), SOME):
            for file in some:
                await self.store.remove(file)
            whole += len(some)
        return whole
