"""The documents of one caller, for export, and for deletion with the collections that they are in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import orjson

from plugins.documents.collections import Collections
from plugins.documents.store import Store
from plugins.documents.tables import ITEMS
from proxy.stores.vectors import Vectors, VectorsAway
from proxy.types import JSON

CHUNK: Final = 100
"""Documents, without their texts, that are in memory at once."""


@dataclass(frozen=True, slots=True)
class CallerDocuments:
    store: Store
    collections: Collections
    index: Vectors
    name: str = "documents"

    async def export(self, caller: str) -> AsyncIterator[JSON]:
        """The caller's documents with their texts, one at a time."""
        after = None
        while page := await self.store.page(ITEMS.c.owner == caller, after, CHUNK):
            for item in page:
                text = "".join([part async for part in self.store.text(item.id, item.newest)])
                head = {"document_id": item.id, "title": item.title, "source": item.source or None}
                metadata = orjson.loads(item.metadata)
                yield {**head, "metadata": metadata, "content": text, "created_at": item.at // 10**6}
            after = page[-1]

    async def forget(self, caller: str) -> int:
        """Delete the caller's collections; gives the number of documents."""
        whole = 0
        for one in await self.collections.owned(caller):
            whole += await self.collections.remove(one)
            with suppress(VectorsAway):  # the sweep drops it later
                await self.index.drop(one.place)
        return whole
