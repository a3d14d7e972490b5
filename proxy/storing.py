"""The stores that a configuration names, as the kinds that they are."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from proxy.clock import Clock
from proxy.settings import Store
from proxy.settings.stores import Memory
from proxy.stores.shelf import Closing, Kind, Shelf

log = logging.getLogger(__name__)
OWN = "memory"
"""What a plugin uses that names no store."""
TEXTS = "texts"
"""The same of those that search texts."""


def kinds(stores: Mapping[str, Store], clock: Clock) -> dict[str, Kind]:
    """One in memory and one of texts are there without being named."""
    named = {OWN: Store(memory=Memory()), TEXTS: Store(lancedb="data/lance"), **stores}
    return {name: kind(name, settings, clock) for name, settings in named.items()}


def kind(name: str, settings: Store, clock: Clock) -> Kind:
    """Any change of its settings makes another store; that of its name only one in memory."""
    told = settings.model_dump_json()
    if settings.redis is not None:  # the dump hides it
        told += hashlib.sha256(settings.redis.get_secret_value().encode()).hexdigest()
    if settings.memory is not None:
        told += name
    path = settings.disk.path if settings.disk is not None else settings.lancedb or ""
    here = "" if "://" in path else path
    return Kind(told, lambda: opened(settings, clock), searched=settings.lancedb is not None, path=here)


def tell_unwritable(shelf: Shelf) -> None:
    """What is wrong with the files of stores in use, which else nobody would know before they are needed."""
    for name, kind in shelf.kinds.items():
        if kind.path and kind.name in shelf.taken and (barred := closed_to_us(Path(kind.path).absolute())):
            told = "the store %r cannot be kept in %s: %s cannot be written; name another path"
            log.warning(told, name, kind.path, barred)


def closed_to_us(path: Path) -> Path | None:
    """What of a path is there, if this process may not write it."""
    there = next(one for one in (path, *path.parents) if one.exists())
    fits = there == path or there.is_dir()
    return None if fits and os.access(there, os.W_OK | (os.X_OK if there.is_dir() else 0)) else there


def opened(settings: Store, clock: Clock) -> Closing:
    """Only those who want a kind of store pay for its client."""
    if settings.memory is not None:
        from proxy.stores.memory import Memory as InMemory

        return InMemory(settings.memory.max_bytes, clock)
    if settings.disk is not None:
        from proxy.stores.disk import Disk

        return Disk(settings.disk.path, settings.disk.max_bytes, clock)
    if settings.lancedb is not None:
        from proxy.stores.lance import Lance

        return Lance(settings.lancedb)
    if settings.redis is None:
        raise TypeError("a store of no kind")  # its settings allow none
    from proxy.stores.redis import RedisStore

    return RedisStore(settings.redis.get_secret_value(), settings.timeout, clock)
