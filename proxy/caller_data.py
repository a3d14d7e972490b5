"""Callers' data that features keep: how it is shown to its owners, deleted, and referred to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Protocol, TypeAlias

from proxy.asks import JSON

ItemFinder: TypeAlias = Callable[[str, Collection[str]], Awaitable[Mapping[str, dict[str, JSON]]]]
"""Finds the items with these ids that belong to this caller, so that calls of other features can refer to them.
Gives them by id, in OpenAI's shape; unknown ids are missing.  Raises Busy, and BadCall if they are too large."""


class CallerData(Protocol):
    """One kind of callers' data that a feature keeps, any number of items.

    Both methods may raise Busy while the data is unavailable; they can then be called again.
    """

    @property
    def name(self) -> str:
        """The name under which the items are shown."""

    def export(self, caller: str) -> AsyncIterator[JSON]:
        """All items of this caller, and of no other, one by one, as JSON without secrets."""

    async def forget(self, caller: str) -> int:
        """Delete all items of this caller for good; gives how many there were."""
