"""The stores that a configuration names, as the kinds that they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from proxy.clock import Clock
from proxy.settings import Store
from proxy.settings.stores import Memory
from proxy.stores.shelf import Closing, Kind

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
    return Kind(told, lambda: opened(settings, clock), searched=settings.lancedb is not None)


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
