"""Key-value stores, the contract: bytes by key, with a time to live, and a label that can be read without the value."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from msgspec import Struct


class StoreError(Exception):
    """The store cannot be used at the moment.  A cache works without it meanwhile."""


class StoredValue(Struct, frozen=True, gc=False):
    """A value that was found.  born: when it was set, in Unix seconds."""

    value: bytes
    born: float


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored value's metadata.  size: bytes that it takes in the store; born, expires: Unix seconds."""

    key: str
    label: bytes
    size: int
    born: float
    expires: float


class NewValue(Struct, frozen=True, gc=False):
    """A value to set.  ttl: time to live, in seconds."""

    key: str
    value: bytes
    ttl: float
    label: bytes = b""


class KeyValue(Protocol):
    """A store of limited size: the least recently used entries make room, expired or not.

    Every method may raise StoreError.
    """

    async def get(self, keys: Sequence[str]) -> list[StoredValue | None]:
        """The values in the order of `keys`; None for missing and expired ones."""

    async def set(self, news: Sequence[NewValue]) -> None:
        """Store values.  One that is larger than the whole store may be is not stored."""

    async def delete(self, keys: Sequence[str]) -> int:
        """Delete entries; gives how many of them existed."""

    def entries(self, prefix: str = "") -> AsyncIterator[Entry]:
        """Entries whose keys begin with the prefix, unordered.  Those added or removed meanwhile may be missing."""

    async def expire(self) -> int:
        """Delete expired entries; gives how many.  Stores that do this by themselves give 0."""

    async def aclose(self) -> None: ...


@runtime_checkable
class Instant(KeyValue, Protocol):
    """A store in this process, which can also be used without awaiting, and never fails."""

    def look(self, key: str) -> StoredValue | None:
        """As `get`, for one key."""

    def put(self, new: NewValue) -> None:
        """As `set`, for one value."""
