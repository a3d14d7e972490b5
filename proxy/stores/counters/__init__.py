"""Counters for limits, the contract: several are claimed together, all or none are granted, and settled afterwards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, Protocol, runtime_checkable

from msgspec import Struct

SLOTS: Final = 60
"""Slots of a window.  The amounts of a slot are dropped together, when all of it is outside the window."""
MOST_NAMES: Final = 10_000
"""Maximum number of names that are remembered."""


class Claim(Struct, frozen=True, gc=False):
    """An amount requested of one counter.  All amounts are whole numbers, below 2**53.

    most: the limit.  amount: 0 is always granted, even if the limit is exceeded.
    window: seconds of a sliding window, or 0.  The counter has what was granted within the window before now: no period
        of that length is granted more than `most`, and amounts become free at most a sixtieth of the window late.
    life: seconds for which a counter without a window is kept.  It has what was spent, and what is held by claims that
        are not settled yet.
    spent: the initial value of a counter without a window; None if that is not known yet.
    """

    key: str
    most: int
    amount: int
    window: float = 0.0
    life: float = 0.0
    spent: int | None = 0


class Verdict(Struct, frozen=True):
    """The result of claims.

    at: the counters' own time, needed for settling.
    used: the amount in each counter, including what was granted just now.
    whole: seconds until each counter is empty if nothing more is claimed; 0 for those without a window.
        () if something was granted: it is then the window and a sixtieth of it.
    full: index of the first claim above its limit, because of which nothing was granted; -1 if there was none.
    wait: seconds until that claim can be granted; 0 if this depends on when others settle theirs; None if it will not
        be, as far as is known.
    unknown: indexes of claims that need an initial value (`spent`); nothing was granted then.
    """

    at: float
    used: Sequence[int]
    whole: Sequence[float]
    full: int = -1
    wait: float | None = None
    unknown: Sequence[int] = ()


class Reservation(Struct, frozen=True):
    """Claims that were granted.  at: as in the Verdict."""

    lease: str
    claims: Sequence[Claim]
    at: float


class Counters(Protocol):
    """Counters in memory never fail; those shared over a network may raise StoreError."""

    async def take(self, claims: Sequence[Claim], lease: str) -> Verdict:
        """Grant all claims or none.  lease: a unique name, or "" to only read the counters.

        What is held under a lease becomes free some time after its process has died.
        """

    def settle(self, reservation: Reservation, amounts: Sequence[int], done: Callable[[], None]) -> None:
        """Count what was actually used, in the order of the claims; in the background if it takes time.

        done: called once this was counted, or has failed.
        In a window, unused amounts become free at once, and additional ones count from now on.
        """

    async def lift(self, totals: Mapping[str, int]) -> None:
        """Raise what existing counters without a window have spent to at least these totals."""

    async def renew(self) -> None:
        """The heartbeat of a process that holds leases, to be called every few seconds."""

    async def note(self, names: Collection[str]) -> None:
        """Note names as in use.  Those unused for a month are forgotten, and the oldest if there are too many."""

    async def names(self) -> list[str]:
        """The noted names, sorted; at most `MOST_NAMES`."""

    async def idle(self) -> None:
        """Wait until everything is settled."""


@runtime_checkable
class Shared(Protocol):
    """A store that also has counters, shared by all processes."""

    def counters(self) -> Counters: ...
