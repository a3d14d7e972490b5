"""Pagination as in OpenAI's API: after an id, or before one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.types import JSON


@dataclass(frozen=True, slots=True)
class PageBounds:
    """The requested part of a list.  after, before: time and id of the rows around it."""

    limit: int
    rising: bool
    after: tuple[int, str] | None = None
    before: tuple[int, str] | None = None


async def page(
    connection: AsyncConnection, query: Select[Any], at: ColumnElement[int], id: ColumnElement[str], cut: PageBounds
) -> tuple[Sequence[Any], bool]:
    """The rows of a page in their order, and whether there are more."""
    backwards = cut.before is not None and cut.after is None  # the page just before a known row
    if cut.after is not None:
        query = query.where(beyond(at, id, cut.after, cut.rising))
    if cut.before is not None:
        query = query.where(beyond(at, id, cut.before, not cut.rising))
    order = (at, id) if cut.rising != backwards else (at.desc(), id.desc())
    rows = (await connection.execute(query.order_by(*order).limit(cut.limit + 1))).all()
    some = rows[: cut.limit]
    return some[::-1] if backwards else some, len(rows) > cut.limit


def beyond(at: ColumnElement[int], id: ColumnElement[str], place: tuple[int, str], later: bool) -> ColumnElement[bool]:
    time, name = place
    if later:
        return (at > time) | ((at == time) & (id > name))
    return (at < time) | ((at == time) & (id < name))


def listed(data: Sequence[dict[str, JSON]], more: bool) -> JSON:
    ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": list(data), "first_id": ends[0], "last_id": ends[1], "has_more": more}
