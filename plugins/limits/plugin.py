"""Limits of requests, tokens, calls at once and money, by caller, key and model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final, Literal, Self

from pydantic import PositiveInt

from plugins.limits.api import Api
from plugins.limits.calendar import Calendar
from plugins.limits.counting import Counting, Taken
from plugins.limits.estimate import Estimate
from plugins.limits.plan import NOTHING, Plan, Rules
from plugins.limits.reporting import rates, refused
from plugins.limits.rules import Rule
from proxy.announcements import KEPT, CallEnded
from proxy.config import Strict
from proxy.errors import ProxyError, TooMany
from proxy.host import Host, interruptible_sleep
from proxy.meter import metered
from proxy.sql.feature import Feature
from proxy.stores.counters import Claim, Counters, Reservation, Verdict
from proxy.stores.counters.memory import InMemory
from proxy.stores.keyvalue import StoreError
from proxy.types import Call, Handler, Reply, Route
from proxy.wire.ids import new_id

if TYPE_CHECKING:
    from plugins.limits.ledger import Ledger

log = logging.getLogger(__name__)
PLANS: Final = 4096
TICK: Final = 1.0
"""Seconds between two writes of what was spent."""
FRESH: Final = 10_000


class Limits:
    """Limits calls by caller, key, model or route: requests and tokens per minute, calls at once, and budgets of tokens
    and money per day and month."""

    place = "limits"
    measures = True
    tables: Feature

    class Settings(Strict):
        store: str | None = None
        """A `redis` store under `stores:`, whose counts all processes share; if unset, calls are counted in this
        process, which must then be the only one."""
        away: Literal["allow", "refuse"] = "allow"
        """What happens to calls while the store is away: each process counts by itself, up to its share of the limits;
        or they are refused with 503."""
        answer_tokens: PositiveInt = 512
        """Tokens reserved for an answer if the call does not limit it; after the call, what it used counts."""
        limits: tuple[Rule, ...] = ()
        """The rules.  Every one that matches a call must allow it."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self.host = host
        self.rules = Rules(settings.limits, host.models.named)
        self.plan = lru_cache(PLANS)(self.rules.plan)
        self.need = Estimate(host, settings.answer_tokens)
        self.calendar = Calendar(host.clock)
        self.ledger: Ledger | None = None
        if self.rules.budgets:
            self.keep_records()
        idle = not settings.limits and settings.store is None  # then any counters will do
        counters = InMemory(host.clock) if idle else host.counters(settings.store)
        self.counting = Counting(counters, self.ledger, host, settings.away == "refuse")
        self.process = new_id("")
        self.calls = 0
        self.held: dict[str, tuple[Plan, Reservation, Counters]] = {}
        """What each call in progress holds, by its meter's id.  CallEnded, sent for every metered call, removes it."""
        self.fresh: set[Plan] = set()
        """Plans whose counts were used since the last tick."""
        self.stopping = asyncio.Event()
        self.ticking: list[asyncio.Task[None]] = []
        if self.rules.rules:
            host.on(CallEnded, self.ended)

    def keep_records(self) -> None:
        from plugins.limits.ledger import Ledger  # imports SQLAlchemy, which only budgets need
        from plugins.limits.tables import FEATURE

        self.tables = FEATURE
        host = self.host
        self.ledger = host.process_state("limits ledger", lambda: Ledger(host.open_database, host.services))

    def __call__(self, call: Call, call_next: Handler) -> Awaitable[Reply]:
        if not self.rules.rules:
            return call_next(call)
        plan = self.plan(call.caller, call.key, call.model, call.route)
        if not plan.counted:
            return call_next(call)
        return metered(call, partial(self.limited, plan, call_next), self.host)

    async def limited(self, plan: Plan, call_next: Handler, call: Call) -> Reply:
        mark = call.meter
        if mark in self.held:  # a plugin further in has sent this call through the chain again
            return await call_next(call)
        verdict, reservation, counters = await self.taken(plan, call)
        self.held[mark] = plan, reservation, counters
        told = rates(plan, reservation.claims, verdict)
        if call.stream:
            call.observer.foretold(told)
        try:
            reply = await call_next(call)
        except ProxyError as error:
            error.facts.update(told)
            raise
        return Reply(reply.events, {**reply.facts, **told}, reply.closers)

    async def taken(self, plan: Plan, call: Call) -> Taken:
        """Raises TooMany, or Busy if the counts are unavailable."""
        self.calls += 1
        if plan not in self.fresh and len(self.fresh) < FRESH:
            self.fresh.add(plan)
        need = self.need.of(call, plan.units) if plan.guesses else NOTHING
        taken = await self.counting.take(plan.claims(need, self.calendar), f"{self.process}-{self.calls}")
        if taken[0].full >= 0:
            raise self.refusal(plan, taken[0], taken[1].claims)
        return taken

    def refusal(self, plan: Plan, verdict: Verdict, claims: Sequence[Claim]) -> TooMany:
        error = refused(plan.counted[verdict.full], claims[verdict.full], verdict, self.calendar)
        error.facts.update(rates(plan, claims, verdict))
        return error

    def ended(self, ended: CallEnded) -> None:
        if (held := self.held.pop(ended.meter, None)) is None:
            return
        plan, reservation, counters = held
        if not plan.settles:
            return
        tokens, money = 0, 0
        if ended.cache not in KEPT:
            tokens = (ended.prompt_tokens or 0) - ended.kept_tokens + (ended.completion_tokens or 0)
            money = (ended.cost.amount or 0) if ended.cost is not None else 0
        took = {"requests": 1, "tokens": tokens, "money": money, "calls": 0}
        amounts = [took[unit] for unit in plan.units]
        counters.settle(reservation, amounts, partial(self.spent, reservation, amounts) if plan.budgets else nothing)

    def spent(self, reservation: Reservation, amounts: Sequence[int]) -> None:
        """Record it only after it was counted, so that the records are never ahead of the counters."""
        for claim, amount in zip(reservation.claims, amounts, strict=True):
            if amount and self.ledger is not None and not claim.window:
                self.ledger.add(claim.key, amount)

    async def __aenter__(self) -> Self:
        if self.rules.rules:
            start = self.host.background.start
            self.ticking = [  # two tasks: a database that does not answer must not keep leases from being renewed
                start(self.tick(self.counting.renew), "holding what calls under way have"),
                start(self.tick(self.written), "counting what was spent"),
            ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stopping.set()
        if self.ticking:
            await asyncio.wait(self.ticking)
            await self.counting.counters.idle()
            await self.written()
            if self.ledger is not None:
                self.ledger.finish()

    async def tick(self, work: Callable[[], Awaitable[None]]) -> None:
        while not self.stopping.is_set():
            await interruptible_sleep(TICK, self.stopping)
            try:
                await work()
            except Exception:  # one failed run must not end the loop
                log.exception("the usage of calls could not be recorded")

    async def written(self) -> None:
        totals = {}
        if self.ledger is not None:
            totals = await self.ledger.flush()
            await self.ledger.sweep()
        await self.counting.lift(totals)
        with suppress(StoreError):  # the store has logged it
            await self.note()

    async def note(self) -> None:
        """Store the names of the counts that were used since the last time."""
        fresh, self.fresh = self.fresh, set()
        if fresh:
            await self.counting.counters.note({subject for plan in fresh for subject in plan.subjects})

    def routes(self) -> Iterable[Route]:
        return Api(self.rules, self.counting, self.calendar, self.host, self.note).routes()


def nothing() -> None:
    """Called instead of `spent` for calls without budgets."""
