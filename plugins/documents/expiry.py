"""Conditions that hide expired documents from the moment of expiry, even before they are deleted."""

from __future__ import annotations

from typing import Final, TypeAlias

from sqlalchemy import BindParameter, ColumnElement, select

from plugins.documents.tables import ITEMS, ORIGINS, STORES

DAY: Final = 86_400 * 1_000_000
"""Microseconds."""
Moment: TypeAlias = int | BindParameter[int]
"""Unix microseconds, or a bound parameter for them in a prepared statement."""


def expired_stores(now: Moment) -> ColumnElement[bool]:
    """A condition: vector stores that have expired."""
    due = STORES.c.days.is_not(None) & (STORES.c.active + STORES.c.days * DAY <= now)
    return (STORES.c.expired != 0) | due


def file_not_expired(now: Moment) -> ColumnElement[bool]:
    """A condition: documents that were not made of an expired file."""
    return ITEMS.c.id.not_in(select(ORIGINS.c.item).where(ORIGINS.c.expires <= now))


def not_expired(now: Moment) -> ColumnElement[bool]:
    """A condition: documents of which neither the file nor the vector store has expired."""
    mine = STORES.c.collection == ITEMS.c.collection
    return file_not_expired(now) & ~select(STORES.c.collection).where(mine & expired_stores(now)).exists()
