"""Bytes by key, each with a life, and a label that can be looked through without reading its value."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from msgspec import Struct


class StoreError(Exception):
    """The store cannot be used now.  A cache goes on without it."""


class Kept(Struct, frozen=True, gc=False):
    """A value that was found.  born: Unix seconds at which it was set."""

    value: bytes
    born: float


@dataclass(frozen=True, slots=True)
class Entry:
    """What is told of a value without it.  size: bytes that it takes; born and expires: Unix seconds."""

    key: str
    label: bytes
    size: int
    born: float
    expires: float


class New(Struct, frozen=True, gc=False):
    """A value to be set.  ttl: seconds that it lives."""

    key: str
    value: bytes
    ttl: float
    label: bytes = b""


class KeyValue(Protocol):
    """Every method may raise StoreError.  Bounded: what was used longest ago makes room, expired or not."""

    async def get(self, keys: Sequence[str]) -> list[Kept | None]:
        """In the order of `keys`; what has expired is not there."""

    async def set(self, news: Sequence[New]) -> None:
        """A value that is larger than the store's bound is not kept."""

    async def delete(self, keys: Sequence[str]) -> int:
        """How many of them were there."""

    def entries(self, prefix: str = "") -> AsyncIterator[Entry]:
        """Those whose keys begin so, in no order; what comes or goes meanwhile may or may not be among them."""

    async def expire(self) -> int:
        """Take away what has expired; how many that were.  Stores that do so by themselves give 0."""

    async def aclose(self) -> None: ...


@runtime_checkable
class Instant(KeyValue, Protocol):
    """One that is here: nobody need wait for it, and it never fails."""

    def look(self, key: str) -> Kept | None:
        """What `get` gives for one key."""

    def put(self, new: New) -> None:
        """What `set` does for one value."""
