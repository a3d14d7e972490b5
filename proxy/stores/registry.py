"""Stores by name: opened when first used, shared by configurations, and closed when no longer used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

from proxy.availability import Availability
from proxy.stores.keyvalue import KeyValue
from proxy.stores.vectors import Vectors


class Closable(Protocol):
    async def aclose(self) -> None: ...


@runtime_checkable
class ExternalStore(Protocol):
    """A store outside of this process, which may be unavailable."""

    availability: Availability


@dataclass(slots=True)
class OpenStore:
    """An open store.  users: how many registries use it."""

    store: Closable
    users: int = 0


@dataclass(frozen=True, slots=True)
class StoreKind:
    """How to open a store.  name: identifies the store, so that an unchanged one stays open over a reload.

    searched: whether it holds texts with vectors, rather than values by key.  path: its local file or folder, or "".
    """

    name: str
    open: Callable[[], Closable]
    searched: bool = False
    path: str = ""


class UnknownStore(LookupError):
    """No store has this name."""


class Stores:
    """The stores of one configuration.  opened: open stores, shared by all configurations of this process."""

    def __init__(self, kinds: Mapping[str, StoreKind], opened: dict[str, OpenStore]) -> None:
        self.kinds = kinds
        self.opened = opened
        self.acquired: set[str] = set()

    def keyvalue(self, name: str) -> KeyValue:
        """Raises Unknown."""
        return cast(KeyValue, self.acquire(name, searched=False))

    def vectors(self, name: str) -> Vectors:
        """Raises Unknown."""
        return cast(Vectors, self.acquire(name, searched=True))

    def names(self, searched: bool) -> list[str]:
        return [name for name, kind in self.kinds.items() if kind.searched == searched]

    def acquire(self, name: str, searched: bool) -> Closable:
        if (kind := self.kinds.get(name)) is None or kind.searched != searched:
            raise UnknownStore(name)
        if kind.name not in self.opened:
            self.opened[kind.name] = OpenStore(kind.open())
        if kind.name not in self.acquired:
            self.acquired.add(kind.name)
            self.opened[kind.name].users += 1
        return self.opened[kind.name].store

    def availability(self) -> dict[str, Availability]:
        """Whether the external stores in use answered when last asked, by name."""
        in_use = {name: self.opened[kind.name].store for name, kind in self.kinds.items() if kind.name in self.acquired}
        return {name: store.availability for name, store in in_use.items() if isinstance(store, ExternalStore)}

    async def aclose(self) -> None:
        """Release the stores of this registry; those that no other registry uses are closed."""
        async with AsyncExitStack() as closing:  # closes each of them even if closing another one fails
            while self.acquired:
                name = self.acquired.pop()
                self.opened[name].users -= 1
                if not self.opened[name].users:
                    closing.push_async_callback(self.opened.pop(name).store.aclose)
