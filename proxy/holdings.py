"""What features keep of callers' own, so that these can have it told, and have it gone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Protocol, TypeAlias

from proxy.asks import JSON

Finding: TypeAlias = Callable[[str, Collection[str]], Awaitable[Mapping[str, dict[str, JSON]]]]
"""Those of these items, in OpenAI's shape, that a feature keeps as this caller's, by id: calls that another feature
serves refer to them.  Raises Busy, and BadCall where they are too much."""


class Holding(Protocol):
    """One kind of things that a feature keeps for callers; it may hold any number of them.

    Both methods may raise Busy while they cannot tell or delete; whoever asked asks again.
    """

    @property
    def name(self) -> str:
        """Under which they are told."""

    def told(self, caller: str) -> AsyncIterator[JSON]:
        """All that is this caller's, one by one, as JSON without secrets; nothing of anybody else's."""

    async def forget(self, caller: str) -> int:
        """Delete all of it, for good; how many things that were."""
