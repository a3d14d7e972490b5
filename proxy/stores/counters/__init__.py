"""Counters of what may be had only so much of: asked for all at once, granted all or none, settled afterwards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, Protocol, runtime_checkable

from msgspec import Struct

SLOTS: Final = 60
"""Parts of a window.  What was counted in one is forgotten at once, when the whole part is outside of the window."""
MOST_NAMES: Final = 10_000
"""Names that are remembered of what is counted."""


class Claim(Struct, frozen=True, gc=False):
    """An amount that is asked of one counter.  All amounts are whole numbers, below 2**53.

    most: what may be had.  amount: of 0 there is always room, whatever was taken beyond it.
    window: seconds.  Such a counter counts what was granted within the window before now: in no stretch of that length
        is more granted than `most`, and what leaves the window is free at most a sixtieth of it later.
    life: seconds that a counter without a window is kept.  It counts what was spent, and what is held by those whose
        claim is not settled.
    spent: with what such a counter begins that is not there; None is not known yet.
    """

    key: str
    most: int
    amount: int
    window: float = 0.0
    life: float = 0.0
    spent: int | None = 0


class Verdict(Struct, frozen=True):
    """What became of claims.

    at: the counters' own time, for settling.
    used: of each counter, with what was granted just now.
    whole: seconds until each has forgotten everything, if nothing more is asked of it; 0 for those without a window.
        () where something was granted: then that is their window, and a sixtieth.
    full: index of the first that had no room, so that nothing was granted; -1 where all had.
    wait: seconds until that one has room: 0 where it comes when what others hold comes free, which nobody knows; None
        where it never does, as far as is known.
    unknown: indexes of those that must be told what they begin with; nothing was granted.
    """

    at: float
    used: Sequence[int]
    whole: Sequence[float]
    full: int = -1
    wait: float | None = None
    unknown: Sequence[int] = ()


class Holding(Struct, frozen=True):
    """Claims that were granted."""

    lease: str
    claims: Sequence[Claim]
    at: float


class Counters(Protocol):
    """Those in memory never fail; whoever shares them over a network may raise StoreError."""

    async def take(self, claims: Sequence[Claim], lease: str) -> Verdict:
        """Grant all of these or nothing.  lease: a name of its own, or "", which looks and takes nothing.

        What is held under a lease comes free by itself some time after its process has died.
        """

    def settle(self, holding: Holding, amounts: Sequence[int], done: Callable[[], None]) -> None:
        """Count what was taken in the end, in the order of the claims: soon, and in the background where it takes time.

        done: called once it has been counted, or cannot be.
        What was granted of a window in vain comes free at once; what was taken beyond it counts from now on.
        """

    async def lift(self, totals: Mapping[str, int]) -> None:
        """Counters that are there and have no window have spent at least so much."""

    async def renew(self) -> None:
        """Is called every few seconds by those who hold something: they live."""

    async def note(self, names: Collection[str]) -> None:
        """These are in use; what was not for a month, or are too many, are forgotten, longest ago first."""

    async def names(self) -> list[str]:
        """What was noted, in order; at most `MOST_NAMES`."""

    async def idle(self) -> None:
        """Returns when everything is settled."""


@runtime_checkable
class Shared(Protocol):
    """A store that has counters, too."""

    def counters(self) -> Counters: ...
