"""Stores by name: opened when first used, shared by configurations, and closed when no longer used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

from proxy.seen import Seen
from proxy.stores.keyvalue import KeyValue
from proxy.stores.vectors import Vectors


class Closing(Protocol):
    async def aclose(self) -> None: ...


@runtime_checkable
class Outside(Protocol):
    """A store outside of this process, which may be unavailable."""

    seen: Seen


@dataclass(slots=True)
class Opened:
    """An open store.  users: how many shelves use it."""

    store: Closing
    users: int = 0


@dataclass(frozen=True, slots=True)
class Kind:
    """How to open a store.  name: identifies the store, so that an unchanged one stays open over a reload.

    searched: whether it holds texts with vectors, rather than values by key.  path: its local file or folder, or "".
    """

    name: str
    open: Callable[[], Closing]
    searched: bool = False
    path: str = ""


class Unknown(LookupError):
    """No store has this name."""


class Shelf:
    """The stores of one configuration.  opened: open stores, shared by all configurations of this process."""

    def __init__(self, kinds: Mapping[str, Kind], opened: dict[str, Opened]) -> None:
        self.kinds = kinds
        self.opened = opened
        self.taken: set[str] = set()

    def keyvalue(self, name: str) -> KeyValue:
        """Raises Unknown."""
        return cast(KeyValue, self.take(name, searched=False))

    def vectors(self, name: str) -> Vectors:
        """Raises Unknown."""
        return cast(Vectors, self.take(name, searched=True))

    def names(self, searched: bool) -> list[str]:
        return [name for name, kind in self.kinds.items() if kind.searched == searched]

    def take(self, name: str, searched: bool) -> Closing:
        if (kind := self.kinds.get(name)) is None or kind.searched != searched:
            raise Unknown(name)
        if kind.name not in self.opened:
            self.opened[kind.name] = Opened(kind.open())
        if kind.name not in self.taken:
            self.taken.add(kind.name)
            self.opened[kind.name].users += 1
        return self.opened[kind.name].store

    def seen(self) -> dict[str, Seen]:
        """Whether the external stores in use answered when last asked, by name."""
        taken = {name: self.opened[kind.name].store for name, kind in self.kinds.items() if kind.name in self.taken}
        return {name: store.seen for name, store in taken.items() if isinstance(store, Outside)}

    async def aclose(self) -> None:
        """Release the stores of this shelf; those that no other shelf uses are closed."""
        async with AsyncExitStack() as closing:  # closes each of them even if closing another one fails
            while self.taken:
                name = self.taken.pop()
                self.opened[name].users -= 1
                if not self.opened[name].users:
                    closing.push_async_callback(self.opened.pop(name).store.aclose)
