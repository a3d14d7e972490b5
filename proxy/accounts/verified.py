"""Keys that were looked up a moment ago, so that hardly any request asks the database; what holds while it is away."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, TypeAlias, TypeVar

from proxy.accounts.records import Found
from proxy.background import Background
from proxy.clock import Clock
from proxy.errors import Busy, ProxyError, Unauthenticated
from proxy.types import Caller

LIFE: Final = 5.0
"""Seconds for which a key is not looked up again; so long may one live on that was revoked by another process."""
GRACE: Final = 60.0
"""Seconds more for which a key is good while the database is away."""
PATIENCE: Final = 2.0
"""Seconds to wait for the database before it counts as away."""
AGAIN: Final = 1.0
"""Seconds before a database that was away is asked again."""
MOST: Final = 10_000
"""Keys that are remembered; as many again that are none."""
BATCH: Final = 500
"""Keys that are looked up with one question."""

Find: TypeAlias = Callable[[Sequence[str]], Awaitable[Mapping[str, Found]]]
"""Gives what keys open, by their hashes.  Raises Busy while it cannot be told."""
UNKNOWN: Final = "is not valid on this server"
Kept = TypeVar("Kept")


@dataclass(frozen=True, slots=True)
class Known:
    """Monotonic seconds: fresh until when it needs no look, good until when it holds while none is possible."""

    caller: Caller
    fresh: float
    good: float


@dataclass(frozen=True, slots=True)
class Refused:
    """why: the end of a sentence that begins with `The API key`."""

    why: str
    until: float


Outcome: TypeAlias = Known | Refused | ProxyError


class Verified:
    """Every key that is not known waits for one question at a time, which asks for all of them together: however many
    keys are tried, the database is asked by one connection of this process."""

    def __init__(self, find: Find, clock: Clock, background: Background, seen: Callable[[str], None]) -> None:
        """seen: is told the id of a key each time that it was looked up and is good."""
        self.find = find
        self.clock = clock
        self.background = background
        self.seen = seen
        self.known: OrderedDict[bytes, Known] = OrderedDict()
        self.refused: OrderedDict[bytes, Refused] = OrderedDict()
        self.waiting: OrderedDict[bytes, tuple[str, asyncio.Future[Outcome]]] = OrderedDict()
        self.asking: asyncio.Task[None] | None = None
        self.asked = self.away = float("-inf")
        """Since when the database is being asked, and until when it is not to be; monotonic seconds."""
        self.age = 0

    def recall(self, digest: bytes) -> Caller | None:
        """Of a key that was looked up within `LIFE`.  digest: stands for the key in this process."""
        known = self.known.get(digest)
        if known is None or known.fresh <= self.clock.monotonic():
            return None
        self.known.move_to_end(digest)
        return known.caller

    async def verify(self, digest: bytes, hash: str) -> Caller:
        """hash: what the database knows the key by.  Raises Unauthenticated, or Busy while nobody can say."""
        refused = self.refused.get(digest)
        if refused is None or refused.until <= self.clock.monotonic():
            outcome = await self.looked_up(digest, hash)
            if isinstance(outcome, ProxyError):
                return self.trusted(digest, outcome)
            if isinstance(outcome, Known):
                return outcome.caller
            refused = outcome
        raise Unauthenticated(f"The API key {refused.why}.", code="invalid_api_key")

    def trusted(self, digest: bytes, away: ProxyError) -> Caller:
        """While the database is away, what it said last.  Raises what it failed with."""
        known = self.known.get(digest)
        if known is None or known.good <= self.clock.monotonic():
            raise away.copied()
        return known.caller

    async def looked_up(self, digest: bytes, hash: str) -> Outcome:
        now = self.clock.monotonic()
        if now < self.away or (self.busy and now - self.asked > PATIENCE):
            return unavailable()
        known = digest in self.known
        if digest not in self.waiting and not known and len(self.waiting) >= MOST:
            return unavailable()
        _, answer = self.waiting.setdefault(digest, (hash, asyncio.get_running_loop().create_future()))
        if known:  # before all that are tried: a flood of them must not look like a database that is away
            self.waiting.move_to_end(digest, last=False)
        if not self.busy:
            self.asked = now
            self.asking = self.background.start(self.work(), "looking up API keys")
        try:
            async with asyncio.timeout(PATIENCE):
                return await asyncio.shield(answer)
        except TimeoutError:
            return unavailable()

    @property
    def busy(self) -> bool:
        return self.asking is not None and not self.asking.done()

    async def work(self) -> None:
        """Until nobody waits."""
        try:
            while self.waiting:
                self.asked, age = self.clock.monotonic(), self.age
                batch = dict(islice(self.waiting.items(), BATCH))
                outcomes = await self.outcomes(batch)
                for digest, (_, answer) in batch.items():
                    self.waiting.pop(digest, None)
                    outcome = outcomes[digest]
                    if age == self.age:
                        self.keep(digest, outcome)
                    if not answer.done():
                        answer.set_result(outcome)
        finally:  # of a question that was cut off
            for _, answer in self.waiting.values():
                if not answer.done():
                    answer.set_result(unavailable())
            self.waiting.clear()

    async def outcomes(self, batch: Mapping[bytes, tuple[str, asyncio.Future[Outcome]]]) -> dict[bytes, Outcome]:
        try:
            found = await self.find([hash for hash, _ in batch.values()])
        except Busy as error:
            self.away = self.clock.monotonic() + AGAIN
            return dict.fromkeys(batch, error)
        return {digest: self.outcome(found.get(hash)) for digest, (hash, _) in batch.items()}

    def outcome(self, found: Found | None) -> Outcome:
        now = self.clock.monotonic()
        if found is None or found.refusal:
            return Refused(UNKNOWN if found is None else found.refusal, now + LIFE)
        self.seen(found.caller.key)
        if found.expires is None:
            return Known(found.caller, now + LIFE, now + LIFE + GRACE)
        left = found.expires / 1_000_000 - self.clock.time()
        return Known(found.caller, now + min(LIFE, left), now + min(LIFE + GRACE, left))

    def keep(self, digest: bytes, outcome: Outcome) -> None:
        if isinstance(outcome, Known):
            put(self.known, digest, outcome)
        elif isinstance(outcome, Refused):
            self.known.pop(digest, None)
            put(self.refused, digest, outcome)

    def forget(self, changed: Callable[[Caller], bool]) -> None:
        """Look everything up again: keys or users were changed here.

        changed: whether a caller is one of them, whom not even a database that is away brings back.
        """
        self.age += 1
        kept = [(digest, known) for digest, known in self.known.items() if not changed(known.caller)]
        self.known = OrderedDict((digest, replace(known, fresh=float("-inf"))) for digest, known in kept)
        self.refused.clear()


def put(there: OrderedDict[bytes, Kept], digest: bytes, outcome: Kept) -> None:
    there[digest] = outcome
    there.move_to_end(digest)
    if len(there) > MOST:
        there.popitem(last=False)


def unavailable() -> Busy:
    return Busy("The database with the API keys does not answer.", code="database_unavailable", wait=5.0)
