"""A short-lived cache of verified keys, so that few requests need the database and it may be away for a moment."""

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
"""Seconds that a cached key is valid; a key that another process revoked may work this much longer."""
GRACE: Final = 60.0
"""Additional seconds that a cached key is valid while the database is unavailable."""
PATIENCE: Final = 2.0
"""Seconds to wait for the database before it counts as unavailable."""
AGAIN: Final = 1.0
"""Seconds before an unavailable database is asked again."""
MOST: Final = 10_000
"""Valid keys that are cached; as many refused ones are cached, too."""
BATCH: Final = 500
"""Maximum keys in one query."""

Find: TypeAlias = Callable[[Sequence[str]], Awaitable[Mapping[str, Found]]]
"""Finds the callers of keys, by the keys' hashes.  Raises Busy while the database is unavailable."""
UNKNOWN: Final = "is not valid on this server"
Kept = TypeVar("Kept")


@dataclass(frozen=True, slots=True)
class VerifiedKey:
    """A cached valid key, with monotonic times.

    fresh: until then it is not looked up again.  good: until then it is accepted while the database is unavailable.
    """

    caller: Caller
    fresh: float
    good: float


@dataclass(frozen=True, slots=True)
class RefusedKey:
    """A cached refused key.  why: the end of a sentence that begins with `The API key`."""

    why: str
    until: float


Outcome: TypeAlias = VerifiedKey | RefusedKey | ProxyError


class Verified:
    """Verifies keys with a cache.

    Keys that are not cached are looked up together, one query at a time.  However many keys are tried, this process
    uses only one connection to the database for it.
    """

    def __init__(self, find: Find, clock: Clock, background: Background, seen: Callable[[str], None]) -> None:
        """seen: called with the id of a valid key each time it was looked up."""
        self.find = find
        self.clock = clock
        self.background = background
        self.seen = seen
        self.known: OrderedDict[bytes, VerifiedKey] = OrderedDict()
        self.refused: OrderedDict[bytes, RefusedKey] = OrderedDict()
        self.waiting: OrderedDict[bytes, tuple[str, asyncio.Future[Outcome]]] = OrderedDict()
        self.asking: asyncio.Task[None] | None = None
        self.asked = self.away = float("-inf")
        """When the running query began, and until when the database is not to be asked; monotonic seconds."""
        self.age = 0

    def recall(self, digest: bytes) -> Caller | None:
        """The caller of a key that was looked up within `LIFE`.  digest: of the key, as `Guard.digest` makes it."""
        known = self.known.get(digest)
        if known is None or known.fresh <= self.clock.monotonic():
            return None
        self.known.move_to_end(digest)
        return known.caller

    async def verify(self, digest: bytes, hash: str) -> Caller:
        """The caller of a key.  hash: of the key, as the database stores it.

        Raises Unauthenticated, or Busy if the database is unavailable.
        """
        refused = self.refused.get(digest)
        if refused is None or refused.until <= self.clock.monotonic():
            outcome = await self.looked_up(digest, hash)
            if isinstance(outcome, ProxyError):
                return self.trusted(digest, outcome)
            if isinstance(outcome, VerifiedKey):
                return outcome.caller
            refused = outcome
        raise Unauthenticated(f"The API key {refused.why}.", code="invalid_api_key")

    def trusted(self, digest: bytes, away: ProxyError) -> Caller:
        """The cached caller, if it is still good while the database is unavailable; else raises `away`."""
        known = self.known.get(digest)
        if known is None or known.good <= self.clock.monotonic():
            raise away.copied()
        return known.caller

    async def looked_up(self, digest: bytes, hash: str) -> Outcome:
        """Wait for a query to the database that includes this key, `PATIENCE` seconds at most."""
        now = self.clock.monotonic()
        if now < self.away or (self.busy and now - self.asked > PATIENCE):
            return unavailable()
        known = digest in self.known
        if digest not in self.waiting and not known and len(self.waiting) >= MOST:
            return unavailable()
        _, answer = self.waiting.setdefault(digest, (hash, asyncio.get_running_loop().create_future()))
        if known:  # first, so that a flood of unknown keys does not make the database seem unavailable to valid ones
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
        """Look up keys until none is waiting."""
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
        finally:  # if a query was cancelled
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
            return RefusedKey(UNKNOWN if found is None else found.refusal, now + LIFE)
        self.seen(found.caller.key)
        if found.expires is None:
            return VerifiedKey(found.caller, now + LIFE, now + LIFE + GRACE)
        left = found.expires / 1_000_000 - self.clock.time()
        return VerifiedKey(found.caller, now + min(LIFE, left), now + min(LIFE + GRACE, left))

    def keep(self, digest: bytes, outcome: Outcome) -> None:
        if isinstance(outcome, VerifiedKey):
            remember(self.known, digest, outcome)
        elif isinstance(outcome, RefusedKey):
            self.known.pop(digest, None)
            remember(self.refused, digest, outcome)

    def forget(self, changed: Callable[[Caller], bool]) -> None:
        """Look all keys up again, because keys or users were changed by this process.

        changed: whether a caller is affected; its keys are forgotten entirely, so that they do not even work while the
        database is unavailable.
        """
        self.age += 1
        kept = [(digest, known) for digest, known in self.known.items() if not changed(known.caller)]
        self.known = OrderedDict((digest, replace(known, fresh=float("-inf"))) for digest, known in kept)
        self.refused.clear()


def remember(there: OrderedDict[bytes, Kept], digest: bytes, outcome: Kept) -> None:
    there[digest] = outcome
    there.move_to_end(digest)
    if len(there) > MOST:
        there.popitem(last=False)


def unavailable() -> Busy:
    return Busy("The database with the API keys does not answer.", code="database_unavailable", wait=5.0)
