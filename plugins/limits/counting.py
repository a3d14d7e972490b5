"""Where calls are counted: in the store, or in this process alone while the store is unavailable."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Final, Protocol, TypeAlias

from proxy.errors import Busy
from proxy.host import Host, WorkerInfo
from proxy.stores.counters import Claim, Counters, Reservation, Verdict
from proxy.stores.counters.memory import InMemory
from proxy.stores.keyvalue import StoreError

log = logging.getLogger(__name__)
SAY: Final = 60.0
"""Seconds between two log lines; after as long without a failure of the store, counts of this process are outdated."""


Taken: TypeAlias = tuple[Verdict, Reservation, Counters]
"""The verdict on the claims, what the call holds if they were granted, and the counters to settle it with."""


class Records(Protocol):
    """The recorded spending of budgets."""

    async def spent(self, counters: Collection[str]) -> Mapping[str, int] | None:
        """What was spent, by counter; None if that is unavailable."""


class Counting:
    """refuses: whether calls are refused while the counts are unavailable."""

    def __init__(self, counters: Counters, records: Records | None, host: Host, refuses: bool) -> None:
        self.counters = counters
        self.records = records
        self.clock = host.clock
        self.worker_info: WorkerInfo = host.services.worker_info
        self.refuses = refuses
        self.alone = InMemory(host.clock)
        self.near = counters if isinstance(counters, InMemory) else None
        """The counters if they are in memory: they answer without waiting."""
        self.last = self.said = float("-inf")
        """When the store was last unavailable, and when that was last logged."""

    async def take(self, claims: Sequence[Claim], lease: str) -> Taken:
        """Claim a call's share of its limits.  Raises Busy if the counts are unavailable and calls are refused then."""
        if self.near is not None and not (verdict := self.near.taken(claims, lease)).unknown:
            return verdict, Reservation(lease, claims, verdict.at), self.near
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
        return verdict, Reservation(lease, claims, verdict.at), counters

    async def begun(self, claims: Sequence[Claim]) -> list[Claim]:
        """The claims whose counters do not exist yet, with their initial values from the records."""
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
        """This process's share of a limit.  Budgets are not divided: the records have the spending of all processes."""
        if claim.spent is None or self.worker_info.count == 1:
            return claim
        most = max(1, self.worker_info.share(claim.most))
        return Claim(claim.key, most, min(claim.amount, most), claim.window, claim.life)

    async def lift(self, totals: Mapping[str, int]) -> None:
        """Raise counters that are behind the records.  totals: what was spent, from the records."""
        await self.alone.lift(totals)
        with suppress(StoreError):  # the store has logged it
            await self.counters.lift(totals)

    async def renew(self) -> None:
        """Called every second: renews the leases of calls in progress."""
        await self.alone.renew()
        with suppress(StoreError):
            await self.counters.renew()


def beginning(claim: Claim, spent: int) -> Claim:
    return Claim(claim.key, claim.most, claim.amount, claim.window, claim.life, spent)


def away(message: str) -> Busy:
    return Busy(message, code="store_unavailable", wait=5.0)
