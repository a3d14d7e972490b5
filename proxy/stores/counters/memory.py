"""Counters in this process's memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from proxy.clock import Clock
from proxy.stores.counters import MOST_NAMES, SLOTS, Claim, Reservation, Verdict

MOST: Final = 100_000
"""Maximum counters of each kind; the least recently used make room, unless something of them is held."""


class Window:
    """A counter with a sliding window, in slots of time."""

    __slots__ = ("newest", "oldest", "slots", "total", "width")

    def __init__(self, claim: Claim, now: float) -> None:
        self.width = claim.window / SLOTS
        self.oldest = self.newest = int(now / self.width)
        self.slots: dict[int, int] = {}
        self.total = 0

    def used(self, now: float) -> int:
        slot = int(now / self.width)
        if slot == self.newest:  # nearly always under load; old slots were dropped when it was first written
            return self.total
        first = slot - SLOTS
        while self.oldest < first and self.slots:
            self.total -= self.slots.pop(self.oldest, 0)
            self.oldest += 1
        return self.total

    def whole(self, now: float) -> float:
        return max(0.0, (self.newest + SLOTS + 1) * self.width - now) if self.total else 0.0

    def wait(self, claim: Claim, now: float) -> float | None:
        """Seconds until the claim can be granted; None if it never can."""
        left = self.total + claim.amount - claim.most
        for slot in sorted(self.slots):
            left -= self.slots[slot]
            if left <= 0:
                return max(0.001, (slot + SLOTS + 1) * self.width - now)
        return None

    def add(self, amount: int, now: float) -> None:
        slot = self.newest = int(now / self.width)
        if not self.slots:
            self.oldest = slot
        self.slots[slot] = self.slots.get(slot, 0) + amount
        self.total += amount

    def settle(self, claim: Claim, amount: int, then: float, now: float) -> None:
        if amount > claim.amount:
            self.used(now)
            self.add(amount - claim.amount, now)
        elif (slot := int(then / self.width)) in self.slots:
            back = min(claim.amount - amount, self.slots[slot])
            self.slots[slot] -= back
            self.total -= back

    def stale(self, now: float) -> bool:
        return now >= (self.newest + SLOTS + 1) * self.width


class Level:
    """A counter without a window: what was spent, and what is held by claims that are not settled."""

    __slots__ = ("held", "spent", "until")

    def __init__(self, claim: Claim, now: float) -> None:
        self.spent = claim.spent or 0
        self.held = 0
        self.until = now + claim.life

    def used(self, now: float) -> int:
        return self.spent + self.held

    def whole(self, now: float) -> float:
        return 0.0

    def wait(self, claim: Claim, now: float) -> float | None:
        return 0.0 if self.spent + claim.amount <= claim.most else None

    def hold(self, claim: Claim, now: float) -> None:
        self.held += claim.amount
        self.until = now + claim.life

    def settle(self, claim: Claim, amount: int, then: float, now: float) -> None:
        self.held = max(0, self.held - claim.amount)
        self.spent += amount

    def stale(self, now: float) -> bool:
        return now >= self.until and not self.held


Counter = Window | Level


class InMemory:
    """Counters for a server of a single process."""

    def __init__(self, clock: Clock) -> None:
        self.time = clock.monotonic  # so that setting the system's clock changes no limit
        self.windows: OrderedDict[str, Counter] = OrderedDict()
        self.levels: OrderedDict[str, Counter] = OrderedDict()
        self.noted: OrderedDict[str, None] = OrderedDict()

    async def take(self, claims: Sequence[Claim], lease: str) -> Verdict:
        return self.taken(claims, lease)

    def taken(self, claims: Sequence[Claim], lease: str) -> Verdict:
        """As `take`, without being awaited."""
        now = self.time()
        counters: list[Counter] = []
        used: list[int] = []
        full = -1
        for claim in claims:
            kind = self.windows if claim.window else self.levels
            counter = kind.get(claim.key)
            if counter is not None:
                kind.move_to_end(claim.key)
            elif (counter := self.made(claim, now)) is None:
                return self.ignorant(claims, now)
            had = counter.used(now)
            if claim.amount and had + claim.amount > claim.most and full < 0:
                full = len(used)
            counters.append(counter)
            used.append(had)
        if not lease or full >= 0:
            wait = counters[full].wait(claims[full], now) if full >= 0 else None
            return Verdict(now, used, [one.whole(now) for one in counters], full, wait)
        for index, (claim, counter) in enumerate(zip(claims, counters, strict=True)):
            if isinstance(counter, Window):
                counter.add(claim.amount, now)
            else:
                counter.hold(claim, now)
            used[index] += claim.amount
        return Verdict(now, used, ())

    def made(self, claim: Claim, now: float) -> Counter | None:
        """A new counter; None if its initial value is unknown."""
        if claim.spent is None:
            return None
        kind = self.windows if claim.window else self.levels
        self.make_room(kind)
        made = kind[claim.key] = Window(claim, now) if claim.window else Level(claim, now)
        return made

    def make_room(self, kind: OrderedDict[str, Counter]) -> None:
        for _ in range(len(kind)):
            if len(kind) < MOST:
                return
            key = next(iter(kind))
            if isinstance(counter := kind[key], Level) and counter.held:
                kind.move_to_end(key)  # the number of held counters is limited by that of running calls
            else:
                del kind[key]

    def ignorant(self, claims: Sequence[Claim], now: float) -> Verdict:
        unknown = [index for index, claim in enumerate(claims) if claim.spent is None and claim.key not in self.levels]
        return Verdict(now, (), (), unknown=unknown)

    def settle(self, reservation: Reservation, amounts: Sequence[int], done: Callable[[], None]) -> None:
        now = self.time()
        for claim, amount in zip(reservation.claims, amounts, strict=True):
            if claim.window:
                if amount != claim.amount and (window := self.windows.get(claim.key)) is not None:
                    window.settle(claim, amount, reservation.at, now)
            elif (level := self.levels.get(claim.key)) is not None:
                level.settle(claim, amount, reservation.at, now)
        done()

    async def lift(self, totals: Mapping[str, int]) -> None:
        for key, total in totals.items():
            if isinstance(level := self.levels.get(key), Level):
                level.spent = max(level.spent, total)

    async def renew(self) -> None:
        """Drop counters that have not been used for long; there are no leases here."""
        now = self.time()
        for kind in (self.windows, self.levels):
            while kind and next(iter(kind.values())).stale(now):
                kind.popitem(last=False)

    async def note(self, names: Collection[str]) -> None:
        for name in names:
            self.noted[name] = None
            self.noted.move_to_end(name)
        while len(self.noted) > MOST_NAMES:
            self.noted.popitem(last=False)

    async def names(self) -> list[str]:
        return sorted(self.noted)

    async def idle(self) -> None:
        """Returns at once, because settling takes no time here."""
