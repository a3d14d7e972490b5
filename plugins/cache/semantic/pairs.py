"""Pairs of questions of which one got the other's answer, and the pairs that are vetoed because it was wrong."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar

from plugins.cache import key
from proxy.stores.keyvalue import KeyValue, NewValue, StoreError

SPACE: Final = "pair"
"""First part of the store's keys, before the tenant."""
REMEMBERED: Final = 10_000
"""Maximum number of given pairs, and of vetoed ones, in a process's memory."""
DAY: Final = 86_400.0
GIVEN: Final = DAY
"""Seconds for which a rating that reaches another process, or this one after a restart, still finds its pair."""
VETOED: Final = 30 * DAY
Known = TypeVar("Known")
Told = TypeVar("Told")


@dataclass(frozen=True, slots=True)
class KnownPairs:
    """The pairs that this process knows.  A pair is a digest of two answers' keys and the context of the questions."""

    given: OrderedDict[tuple[str, str], str] = field(default_factory=OrderedDict)
    """By caller and call id."""
    vetoed: OrderedDict[str, None] = field(default_factory=OrderedDict)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs in this process's memory, and in the cache's store for the other processes.  If the store fails, the
    memory still applies."""

    memory: KnownPairs
    store: KeyValue
    tenant: Callable[[str], str]
    """Gives the tenant of a caller."""

    async def open(self, caller: str, pairs: Sequence[str]) -> list[bool]:
        """For each pair, whether it may be used: it is not vetoed."""
        kept = [pair in self.memory.vetoed for pair in pairs]
        if not all(kept):
            with suppress(StoreError):
                found = await self.store.get([self.vetoed(caller, pair) for pair in pairs])
                kept = [here or there is not None for here, there in zip(kept, found, strict=True)]
        return [not one for one in kept]

    def note(self, caller: str, call: str, pair: str) -> None:
        remember(self.memory.given, (caller, call), pair)

    async def tell(self, caller: str, call: str, pair: str) -> None:
        """Store a given pair for the other processes."""
        with suppress(StoreError):
            await self.store.set([NewValue(self.given(caller, call), pair.encode(), GIVEN)])

    def refused(self, caller: str, call: str) -> str:
        """Veto, in this process, the pair that it gave to a call, and return it; "" if it gave none."""
        pair = self.memory.given.pop((caller, call), "")
        if pair:
            remember(self.memory.vetoed, pair, None)
        return pair

    async def veto(self, caller: str, call: str, pair: str) -> None:
        """Veto a pair for all processes.  pair: "" if another process gave it; it is then looked up in the store."""
        if not pair and not (pair := await self.stored_pair(caller, call)):
            return
        with suppress(StoreError):
            await self.store.set([NewValue(self.vetoed(caller, pair), b"1", VETOED)])
        remember(self.memory.vetoed, pair, None)

    async def stored_pair(self, caller: str, call: str) -> str:
        """The pair that any process gave to a call, from the store; "" if there is none or the store fails."""
        with suppress(StoreError):
            (kept,) = await self.store.get([self.given(caller, call)])
            return "" if kept is None else kept.value.decode()
        return ""

    def given(self, caller: str, call: str) -> str:
        which = hashlib.sha256(f"{caller}\0{call}".encode()).hexdigest()[:32]
        return f"{key.prefix_of(SPACE, self.tenant(caller))}given:{which}"

    def vetoed(self, caller: str, pair: str) -> str:
        return f"{key.prefix_of(SPACE, self.tenant(caller))}vetoed:{pair}"


def remember(pairs: OrderedDict[Known, Told], known: Known, told: Told) -> None:
    pairs[known] = told
    while len(pairs) > REMEMBERED:
        pairs.popitem(last=False)
