"""The stores in a configuration, by kind."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from proxy.clock import Clock
from proxy.settings import Store
from proxy.settings.stores import Memory
from proxy.stores.registry import Closable, StoreKind, Stores

log = logging.getLogger(__name__)
OWN = "memory"
"""The store of a plugin whose settings name none."""
TEXTS = "texts"
"""The same for plugins that need a vector store."""


def kinds(stores: Mapping[str, Store], clock: Clock) -> dict[str, StoreKind]:
    """The kinds of all stores, by name.  One in memory and one for texts always exist."""
    named = {OWN: Store(memory=Memory()), TEXTS: Store(lancedb="data/lance"), **stores}
    return {name: kind(name, settings, clock) for name, settings in named.items()}


def kind(name: str, settings: Store, clock: Clock) -> StoreKind:
    """The kind of a store.  Changed settings mean another store; a changed name does so only for one in memory."""
    told = settings.model_dump_json()
    if settings.redis is not None:  # the dump masks the URL, which is a secret
        told += hashlib.sha256(settings.redis.get_secret_value().encode()).hexdigest()
    if settings.memory is not None:
        told += name
    path = settings.disk.path if settings.disk is not None else settings.lancedb or ""
    here = "" if "://" in path else path
    return StoreKind(told, lambda: opened(settings, clock), searched=settings.lancedb is not None, path=here)


def log_unwritable(stores: Stores) -> None:
    """Log which stores in use cannot write their files, as otherwise this would only show when they are first used."""
    for name, kind in stores.kinds.items():
        if kind.path and kind.name in stores.acquired and (barred := closed_to_us(Path(kind.path).absolute())):
            told = "the store %r cannot be kept in %s: %s cannot be written; name another path"
            log.warning(told, name, kind.path, barred)


def closed_to_us(path: Path) -> Path | None:
    """The existing part of a path, if this process cannot write to it; else None."""
    there = next(one for one in (path, *path.parents) if one.exists())
    fits = there == path or there.is_dir()
    return None if fits and os.access(there, os.W_OK | (os.X_OK if there.is_dir() else 0)) else there


def opened(settings: Store, clock: Clock) -> Closable:
    """Open a store.  Each kind's client is imported only here, because not every server needs it."""
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
        raise TypeError("a store of no kind")  # the settings do not allow this
    from proxy.stores.redis import RedisStore

    return RedisStore(settings.redis.get_secret_value(), settings.timeout, clock)
