"""What has expired is not there from that moment on, whether or not it was taken away by then."""

from __future__ import annotations

from typing import Final, TypeAlias

from sqlalchemy import BindParameter, ColumnElement, select

from plugins.documents.tables import ITEMS, ORIGINS, STORES

DAY: Final = 86_400 * 1_000_000
"""Microseconds."""
Moment: TypeAlias = int | BindParameter[int]
"""In microseconds; or what stands for it in a statement that is made once."""


def over(now: Moment) -> ColumnElement[bool]:
    """Which vector stores have expired."""
    due = STORES.c.days.is_not(None) & (STORES.c.active + STORES.c.days * DAY <= now)
    return (STORES.c.expired != 0) | due


def kept(now: Moment) -> ColumnElement[bool]:
    """Which documents were not made of a file that has expired."""
    return ITEMS.c.id.not_in(select(ORIGINS.c.item).where(ORIGINS.c.expires <= now))


def there(now: Moment) -> ColumnElement[bool]:
    """Which documents may be seen: nothing of them has expired."""
    mine = STORES.c.collection == ITEMS.c.collection
    return kept(now) & ~select(STORES.c.collection).where(mine & over(now)).exists()
