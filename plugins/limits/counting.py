"""Where calls are counted: in the store, or in this process alone while the store is away."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Final, Protocol, TypeAlias

from proxy.errors import Busy
from proxy.host import Host, Place
from proxy.stores.counters import Claim, Counters, Holding, Verdict
from proxy.stores.counters.memory import InMemory
from proxy.stores.keyvalue import StoreError

log = logging.getLogger(__name__)
SAY: Final = 60.0
"""Seconds between two lines in the log; what was counted alone longer ago is of no use."""


Taken: TypeAlias = tuple[Verdict, Holding, Counters]
"""What became of claims, what is held of them if they were granted, and where it is to be settled."""


class Records(Protocol):
    """What was spent of budgets, wherever it is written down."""

    async def spent(self, counters: Collection[str]) -> Mapping[str, int] | None:
        """None while that cannot be learned."""


class Counting:
    """refuses: whether calls are refused while it is not known what they may."""

    def __init__(self, counters: Counters, records: Records | None, host: Host, refuses: bool) -> None:
        self.counters = counters
        self.records = records
        self.clock = host.clock
        self.place: Place = host.services.place
        self.refuses = refuses
        self.alone = InMemory(host.clock)
        self.near = counters if isinstance(counters, InMemory) else None
        """Those that answer at once."""
        self.last = self.said = float("-inf")
        """When the store was last away, and when that was last told."""

    async def take(self, claims: Sequence[Claim], lease: str) -> Taken:
        """Raises Busy where calls are refused while something is away."""
        if self.near is not None and not (verdict := self.near.taken(claims, lease)).unknown:
            return verdict, Holding(lease, claims, verdict.at), self.near
        try:
            return await self.taken(self.counters, claims, lease)
        except StoreError as error:
            if self.refuses:
                raise away(f"Limits cannot be checked at the moment: {error}.") from error
            return await self.taken(self.by_itself(error), [self.share(one) for one in claims], lease)

    async def taken(self, counters: Counters, claims: Sequence[Claim], lease: str) -> Taken:
        verdict = await counters.take(claims, lease)
        if verdict.unknown:
            claims = await self.begun(claims)
            verdict = await counters.take(claims, lease)
        return verdict, Holding(lease, claims, verdict.at), counters

    async def begun(self, claims: Sequence[Claim]) -> list[Claim]:
        """Those that have to begin with something, with what was spent by the records."""
        spent = await self.records.spent([one.key for one in claims if one.spent is None]) if self.records else {}
        if spent is None:
            if self.refuses:
                raise away("The spending of budgets is not known: the database does not answer.")
            spent = {}
        return [one if one.spent is not None else beginning(one, spent.get(one.key, 0)) for one in claims]

    def by_itself(self, error: StoreError) -> InMemory:
        now = self.clock.monotonic()
        if now - self.last >= SAY:
            self.alone = InMemory(self.clock)
        self.last = now
        if now - self.said >= SAY:
            self.said = now
            log.warning("limits are counted in this process alone, so that twice as much may pass: %s", error)
        return self.alone

    def share(self, claim: Claim) -> Claim:
        """This process's part of a limit.  Not of a budget, which is known of by the records: they are everybody's."""
        if claim.spent is None or self.place.count == 1:
            return claim
        most = max(1, self.place.share(claim.most))
        return Claim(claim.key, most, min(claim.amount, most), claim.window, claim.life)

    async def lift(self, totals: Mapping[str, int]) -> None:
        """totals: what was spent by the records."""
        await self.alone.lift(totals)
        with suppress(StoreError):  # has been told by the store
            await self.counters.lift(totals)

    async def renew(self) -> None:
        """Every second: what calls under way hold stays theirs."""
        await self.alone.renew()
        with suppress(StoreError):
            await self.counters.renew()


def beginning(claim: Claim, spent: int) -> Claim:
    return Claim(claim.key, claim.most, claim.amount, claim.window, claim.life, spent)


def away(message: str) -> Busy:
    return Busy(message, code="store_unavailable", wait=5.0)
