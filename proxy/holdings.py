"""What features keep of callers' own, so that these can have it told, and have it gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from proxy.asks import JSON


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
