"""The stored answers of one caller: exported, or deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from plugins.stored.answers import COMPLETION, RESPONSE
from plugins.stored.retention import Retention
from plugins.stored.store import Wanted
from plugins.stored.tables import ANSWERS
from proxy.types import JSON

CHUNK: Final = 50
"""Answers read at once."""


@dataclass(frozen=True, slots=True)
class CallerAnswers:
    retention: Retention
    name: str = "stored"

    async def export(self, caller: str) -> AsyncIterator[JSON]:
        store = self.retention.store
        for kind in (RESPONSE, COMPLETION):
            after, more = None, True
            while more:
                page, more = await store.page(caller, kind, Wanted(after, CHUNK))
                for one in page:
                    whole = await store.get(caller, kind, one.id, "input")
                    yield {**whole.document, "input": whole.input}
                after = page[-1].id if page else None

    async def forget(self, caller: str) -> int:
        """Also stops background responses: the next heartbeat does not find their rows."""
        return await self.retention.remove(ANSWERS.c.owner == caller)
