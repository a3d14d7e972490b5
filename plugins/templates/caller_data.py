"""The templates of one caller: exported, or deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from plugins.templates.store import Store
from plugins.templates.writing import Writing
from proxy.types import JSON


@dataclass(frozen=True, slots=True)
class CallerTemplates:
    store: Store
    writing: Writing
    name: str = "templates"

    async def export(self, caller: str) -> AsyncIterator[JSON]:
        """Every version of every template."""
        for name in dict.fromkeys(one["name"] for one in await self.store.exported(caller, None)):
            for version in await self.store.exported(caller, name):
                yield version

    async def forget(self, caller: str) -> int:
        """Delete all of them, including public ones."""
        return await self.writing.clear(caller)
