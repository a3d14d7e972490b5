"""Which question was given which other one's answer, and which of these pairs are none any more."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar

from plugins.cache import key
from proxy.stores.keyvalue import KeyValue, New, StoreError

SPACE: Final = "pair"
"""What keys in the store begin with, before their caller."""
REMEMBERED: Final = 10_000
"""Of each kind, in the process."""
DAY: Final = 86_400.0
GIVEN: Final = DAY
"""Seconds for which an answer may be found bad by way of another process, or after a restart."""
VETOED: Final = 30 * DAY
Known = TypeVar("Known")
Told = TypeVar("Told")


@dataclass(frozen=True, slots=True)
class Memory:
    """What the process knows.  Pairs are digests of the places of two answers, and of all around their questions."""

    given: OrderedDict[tuple[str, str], str] = field(default_factory=OrderedDict)
    """By caller and id of the call."""
    vetoed: OrderedDict[str, None] = field(default_factory=OrderedDict)


@dataclass(frozen=True, slots=True)
class Pairs:
    """In the process's memory, and in the cache's store for the others that share it.  Without the store what this
    process was told still holds in it."""

    memory: Memory
    store: KeyValue
    tenant: Callable[[str], str]
    """Of a caller."""

    async def open(self, caller: str, pairs: Sequence[str]) -> list[bool]:
        """Of each, whether it was not vetoed."""
        kept = [pair in self.memory.vetoed for pair in pairs]
        if not all(kept):
            with suppress(StoreError):
                found = await self.store.get([self.vetoed(caller, pair) for pair in pairs])
                kept = [here or there is not None for here, there in zip(kept, found, strict=True)]
        return [not one for one in kept]

    def note(self, caller: str, call: str, pair: str) -> None:
        remember(self.memory.given, (caller, call), pair)

    async def tell(self, caller: str, call: str, pair: str) -> None:
        """The same to other processes."""
        with suppress(StoreError):
            await self.store.set([New(self.given(caller, call), pair.encode(), GIVEN)])

    def refused(self, caller: str, call: str) -> str:
        """The pair that this process gave to a call, which is none any more; "" where it gave none."""
        pair = self.memory.given.pop((caller, call), "")
        if pair:
            remember(self.memory.vetoed, pair, None)
        return pair

    async def veto(self, caller: str, call: str, pair: str) -> None:
        """For all processes.  pair: "" where another one gave it."""
        if not pair and not (pair := await self.told(caller, call)):
            return
        with suppress(StoreError):
            await self.store.set([New(self.vetoed(caller, pair), b"1", VETOED)])
        remember(self.memory.vetoed, pair, None)

    async def told(self, caller: str, call: str) -> str:
        """The pair that another process gave to a call; "" where none did, or nobody knows."""
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
