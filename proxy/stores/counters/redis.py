"""Counters in Redis, shared by all processes: one script grants all claims of a call in one round trip."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from redis.exceptions import NoScriptError

from proxy.clock import Clock
from proxy.stores.breaker import Breaker
from proxy.stores.counters import MOST_NAMES, Claim, Reservation, Verdict
from proxy.stores.keyvalue import StoreError

SPACE: Final = "{gemmapy:limits}:"
"""A hash tag, so that all keys of a script are on the same node of a cluster."""
NAMES: Final = f"{SPACE}names"
LEASE: Final = 30.0
"""Seconds after which what a dead process held becomes free."""
RENEW: Final = 10.0
BATCH: Final = 500
MONTH: Final = 32 * 86_400.0
MOST_UNSURE: Final = 10_000
NOTHING: Final = b""

Run: TypeAlias = Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]
"""Sends commands in one round trip; gives the result of each, or its exception."""


class Script:
    """A Lua script beside this file, called by its digest."""

    def __init__(self, name: str) -> None:
        self.text = (Path(__file__).parent / f"{name}.lua").read_bytes()
        # Redis identifies scripts by SHA-1; this is not used for security.
        self.digest = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()

    def call(self, keys: Sequence[str], arguments: Sequence[Any]) -> tuple[Any, ...]:
        return ("EVALSHA", self.digest, len(keys), *keys, *arguments)

    def whole(self, call: tuple[Any, ...]) -> tuple[Any, ...]:
        """The same call with the script's text, for a Redis that does not know the script yet."""
        return ("EVAL", self.text, *call[2:])


TAKE, SETTLE, RENEWAL, LIFT = Script("take"), Script("settle"), Script("renew"), Script("lift")


Waiting: TypeAlias = tuple[Script, tuple[Any, ...], asyncio.Future[Any]]


class Batch:
    """Combines the commands of one turn of the event loop, or those that come during a round trip, into one round trip,
    which takes most of their time."""

    def __init__(self, run: Run, breaker: Breaker) -> None:
        self.run = run
        self.breaker = breaker
        self.waiting: list[Waiting] = []
        self.sending: asyncio.Task[None] | None = None

    def send(self, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> asyncio.Future[Any]:
        """Send a script's call.  The future raises StoreError on failure; cancelling it does not stop the command."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self.waiting.append((script, script.call(keys, arguments), future))
        if self.sending is None or self.sending.done():
            self.sending = loop.create_task(self.send_all())  # a separate task, so no caller's cancellation ends it
        return future

    async def send_all(self) -> None:
        while self.waiting:
            some, self.waiting = self.waiting[:BATCH], self.waiting[BATCH:]
            await self.sent(some)

    async def sent(self, waiting: Sequence[Waiting]) -> None:
        """Send commands; those whose script Redis does not know are sent again with its text."""
        try:
            told = await self.breaker.do(self.run([call for _, call, _ in waiting]))
            unheard = [index for index, one in enumerate(told) if isinstance(one, NoScriptError)]
            if unheard:
                whole = [waiting[index][0].whole(waiting[index][1]) for index in unheard]
                for index, one in zip(unheard, await self.breaker.do(self.run(whole)), strict=True):
                    told[index] = one
        except StoreError as error:
            told = [error] * len(waiting)
        for (_, _, future), one in zip(waiting, told, strict=True):
            if future.done():
                continue
            if isinstance(one, Exception):
                future.set_exception(one if isinstance(one, StoreError) else self.breaker.failed(str(one)))
            else:
                future.set_result(one)

    async def idle(self) -> None:
        while self.sending is not None and not self.sending.done():
            await asyncio.wait([self.sending])


class InRedis:
    """run: sends commands, with the breaker's timeout."""

    def __init__(self, run: Run, breaker: Breaker, clock: Clock) -> None:
        self.batch = Batch(run, breaker)
        self.run = run
        self.breaker = breaker
        self.clock = clock
        self.held: dict[str, Sequence[Claim]] = {}
        """What this process holds, by lease."""
        self.unsure: dict[str, Sequence[Claim]] = {}
        """What Redis may still hold although this process does not need it, because a command failed; by lease."""
        self.renewed = clock.monotonic()

    async def take(self, claims: Sequence[Claim], lease: str) -> Verdict:
        arguments: list[Any] = [lease, int(LEASE * 1000)]
        for one in claims:
            spent = NOTHING if one.spent is None else one.spent
            arguments += (milliseconds(one.window), one.most, one.amount, milliseconds(one.life), spent)
        future = self.batch.send(TAKE, keys_of(claims), arguments)
        try:
            verdict = read(await asyncio.shield(future), len(claims))
        except asyncio.CancelledError:
            future.add_done_callback(lambda told: self.undo(told, claims, lease))
            raise
        except StoreError:  # perhaps only the answer was lost, and the claims were granted
            self.doubt(claims, lease)
            raise
        if lease and verdict.full < 0 and not verdict.unknown:
            self.hold(claims, lease)
        return verdict

    def hold(self, claims: Sequence[Claim], lease: str) -> None:
        if levels := [one for one in claims if not one.window and one.amount]:
            self.held[lease] = levels

    def undo(self, told: asyncio.Future[Any], claims: Sequence[Claim], lease: str) -> None:
        """Return granted claims whose caller was cancelled."""
        if told.cancelled() or told.exception() is not None:
            return self.doubt(claims, lease)
        verdict = read(told.result(), len(claims))
        if lease and verdict.full < 0 and not verdict.unknown:
            self.settle(Reservation(lease, claims, verdict.at), [0] * len(claims), nothing)

    def settle(self, reservation: Reservation, amounts: Sequence[int], done: Callable[[], None]) -> None:
        self.held.pop(reservation.lease, None)
        changed = [
            (one, amount)
            for one, amount in zip(reservation.claims, amounts, strict=True)
            if not one.window or one.amount != amount
        ]
        if not changed:
            return done()
        arguments: list[Any] = [reservation.lease, int(reservation.at)]
        for one, amount in changed:
            arguments += (milliseconds(one.window), one.amount, amount)
        future = self.batch.send(SETTLE, keys_of([one for one, _ in changed]), arguments)
        future.add_done_callback(lambda told: self.settled(told, reservation, done))

    def settled(self, told: asyncio.Future[Any], reservation: Reservation, done: Callable[[], None]) -> None:
        if told.cancelled() or told.exception() is not None:  # the breaker has logged it
            self.doubt(reservation.claims, reservation.lease)
        done()

    def doubt(self, claims: Sequence[Claim], lease: str) -> None:
        levels = [one for one in claims if not one.window and one.amount]
        if lease and levels and len(self.unsure) < MOST_UNSURE:
            self.unsure[lease] = levels

    def let_go(self) -> None:
        """Try again to release what Redis may hold in vain.  `lift` corrects what was spent, from the records."""
        unsure, self.unsure = self.unsure, {}
        for lease, claims in unsure.items():
            self.settle(Reservation(lease, claims, 0), [0] * len(claims), nothing)

    async def lift(self, totals: Mapping[str, int]) -> None:
        keys = list(totals)
        for at in range(0, len(keys), BATCH):
            some = keys[at : at + BATCH]
            await self.batch.send(LIFT, [SPACE + key for key in some], [totals[key] for key in some])

    async def renew(self) -> None:
        self.let_go()
        now = self.clock.monotonic()
        if now - self.renewed < RENEW:
            return
        self.renewed = now
        held = [(one, f"{lease}:{one.amount}") for lease, claims in self.held.items() for one in claims]
        for at in range(0, len(held), BATCH):
            some = held[at : at + BATCH]
            members = [member for _, member in some]
            await self.batch.send(RENEWAL, keys_of([one for one, _ in some]), [int(LEASE * 1000), *members])

    async def note(self, names: Collection[str]) -> None:
        now = self.clock.time()
        scores = [part for name in names for part in (now, name)]
        await self.ran(
            [
                *([("ZADD", NAMES, *scores)] if scores else ()),
                ("ZREMRANGEBYSCORE", NAMES, "-inf", now - MONTH),
                ("ZREMRANGEBYRANK", NAMES, 0, -MOST_NAMES - 1),
            ]
        )

    async def names(self) -> list[str]:
        (found,) = await self.ran([("ZRANGE", NAMES, 0, -1)])
        return sorted(name.decode() for name in found)

    async def ran(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        told = await self.breaker.do(self.run(commands))
        for one in told:
            if isinstance(one, Exception):
                raise self.breaker.failed(str(one))
        return told

    async def idle(self) -> None:
        await self.batch.idle()


def keys_of(claims: Sequence[Claim]) -> list[str]:
    keys: list[str] = []
    for one in claims:
        key = SPACE + one.key
        keys += (key, key if one.window else f"{key}:leases")
    return keys


def read(told: Sequence[int], count: int) -> Verdict:
    """The result of take.lua as a Verdict."""
    if told[0] == 2:
        return Verdict(told[1], (), (), unknown=told[2:])
    used = told[2 : 2 + count]
    if told[0] == 0:
        return Verdict(told[1], used, ())
    *whole, full, wait = told[2 + count :]
    return Verdict(told[1], used, [one / 1000 for one in whole], full, None if wait < 0 else wait / 1000)


def nothing() -> None:
    """A `done` callback for when nobody waits."""


def milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
