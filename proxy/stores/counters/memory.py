"""Counters in this process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from proxy.clock import Clock
from proxy.stores.counters import MOST_NAMES, SLOTS, Claim, Settlement, Verdict

MOST: Final = 100_000
"""Counters of each kind; what was used longest ago makes room, unless something of it is held."""


class Window:
    """What was granted lately, by slots of time."""

    __slots__ = ("newest", "oldest", "slots", "total", "width")

    def __init__(self, claim: Claim, now: float) -> None:
        self.width = claim.window / SLOTS
        self.oldest = self.newest = int(now / self.width)
        self.slots: dict[int, int] = {}
        self.total = 0

    def used(self, now: float) -> int:
        first = int(now / self.width) - SLOTS
        while self.oldest < first and self.slots:
            self.total -= self.slots.pop(self.oldest, 0)
            self.oldest += 1
        return self.total

    def whole(self, now: float) -> float:
        return max(0.0, (self.newest + SLOTS + 1) * self.width - now) if self.total else 0.0

    def wait(self, claim: Claim, now: float) -> float | None:
        """Seconds until there is room; None if there never will be."""
        left = self.total + claim.amount - claim.most
        for slot in sorted(self.slots):
            left -= self.slots[slot]
            if left <= 0:
                return max(0.001, (slot + SLOTS + 1) * self.width - now)
        return None

    def book(self, claim: Claim, now: float) -> None:
        self.add(claim.amount, now)

    def add(self, amount: int, now: float) -> None:
        slot = max(int(now / self.width), self.newest)
        if not self.slots:
            self.oldest = slot
        self.newest = slot
        self.slots[slot] = self.slots.get(slot, 0) + amount
        self.total += amount

    def settle(self, claim: Claim, amount: int, then: float, now: float) -> None:
        if amount > claim.amount:
            self.add(amount - claim.amount, now)
        elif (slot := int(then / self.width)) in self.slots:
            back = min(claim.amount - amount, self.slots[slot])
            self.slots[slot] -= back
            self.total -= back

    def stale(self, now: float) -> bool:
        return now >= (self.newest + SLOTS + 1) * self.width


class Level:
    """What was spent, and what is held."""

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
        return None

    def book(self, claim: Claim, now: float) -> None:
        self.held += claim.amount
        self.until = now + claim.life

    def settle(self, claim: Claim, amount: int, then: float, now: float) -> None:
        self.held = max(0, self.held - claim.amount)
        self.spent += amount

    def stale(self, now: float) -> bool:
        return now >= self.until and not self.held


Counter = Window | Level


class InMemory:
    def __init__(self, clock: Clock) -> None:
        self.time = clock.time
        self.windows: OrderedDict[str, Counter] = OrderedDict()
        self.levels: OrderedDict[str, Counter] = OrderedDict()
        self.noted: OrderedDict[str, None] = OrderedDict()

    async def take(self, claims: Sequence[Claim], lease: str) -> Verdict:
        now = self.time()
        counters, used, full = [], [], -1
        for index, claim in enumerate(claims):
            counter = self.found(claim, now)
            if counter is None:
                return self.ignorant(claims, now)
            counters.append(counter)
            had = counter.used(now)
            used.append(had)
            if full < 0 and had + claim.amount > claim.most:
                full = index
        if full >= 0:
            wait = counters[full].wait(claims[full], now)
            return Verdict(now, used, [one.whole(now) for one in counters], full, wait)
        if lease:
            for index, claim in enumerate(claims):
                counters[index].book(claim, now)
                used[index] += claim.amount
        return Verdict(now, used, [one.whole(now) for one in counters])

    def found(self, claim: Claim, now: float) -> Counter | None:
        kind = self.windows if claim.window else self.levels
        if (counter := kind.get(claim.key)) is not None:
            kind.move_to_end(claim.key)
            return counter
        if claim.spent is None:
            return None
        self.make_room(kind)
        made = kind[claim.key] = Window(claim, now) if claim.window else Level(claim, now)
        return made

    def make_room(self, kind: OrderedDict[str, Counter]) -> None:
        for _ in range(len(kind)):
            if len(kind) < MOST:
                return
            key = next(iter(kind))
            if isinstance(counter := kind[key], Level) and counter.held:
                kind.move_to_end(key)  # however many are held, that is no more than there are calls
            else:
                del kind[key]

    def ignorant(self, claims: Sequence[Claim], now: float) -> Verdict:
        unknown = [index for index, claim in enumerate(claims) if claim.spent is None and claim.key not in self.levels]
        return Verdict(now, (), (), unknown=unknown)

    def settle(self, settlement: Settlement) -> None:
        holding, now = settlement.holding, self.time()
        for claim, amount in zip(holding.claims, settlement.amounts, strict=True):
            if amount == claim.amount and claim.window:
                continue
            if (counter := (self.windows if claim.window else self.levels).get(claim.key)) is not None:
                counter.settle(claim, amount, holding.at, now)
        settlement.done()

    async def lift(self, totals: Mapping[str, int]) -> None:
        for key, total in totals.items():
            if isinstance(level := self.levels.get(key), Level):
                level.spent = max(level.spent, total)

    async def renew(self) -> None:
        """What nobody has used for long goes."""
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
        """Nothing here takes time."""
