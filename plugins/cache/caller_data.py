"""The cached answers of one caller, for export and deletion."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from plugins.cache import entry, key
from plugins.cache.api import BATCH, available
from plugins.cache.semantic.pairs import SPACE
from proxy.stores.keyvalue import KeyValue
from proxy.types import JSON, Text


@dataclass(frozen=True, slots=True)
class CallerAnswers:
    """Used only if callers do not share entries: shared ones belong to nobody."""

    store: KeyValue
    written: Callable[[], Awaitable[None]]
    """Returns when all answers so far are in the store."""
    cleared: Callable[[str], None]
    """Called with the prefix that is removed, so that answers still being generated are not cached afterwards."""
    name: str = "cache"

    async def export(self, caller: str) -> AsyncIterator[JSON]:
        async with available(self.written):
            async for one in self.store.entries(key.prefix_of("cache", caller)):
                facts, words = key.facts_of(one.label), key.words_in(one.label)
                kept = (await self.store.get((one.key,)))[0]
                found = None if kept is None else entry.unpacked(kept.value)
                texts = [event.text for event in found.events if isinstance(event, Text)] if found else []
                times = {"created_at": int(one.born), "expires_at": int(one.expires)}
                yield {"model": facts.get("model"), "asked": words, "answered": "".join(texts), **times}

    async def forget(self, caller: str) -> int:
        going: list[str] = []
        deleted = 0
        self.cleared(key.prefix_of("cache", caller))
        async with available(self.written):
            for space in ("cache", SPACE):
                async for one in self.store.entries(key.prefix_of(space, caller)):
                    going.append(one.key)
                    if len(going) >= BATCH:
                        deleted, going = deleted + await self.store.delete(going), []
            return deleted + await self.store.delete(going)
