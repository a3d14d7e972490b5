"""Lists in OpenAI's shape: a page after an id."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Literal

import orjson
from aiohttp import web
from pydantic import Field

from proxy.config import Strict
from proxy.errors import BadCall
from proxy.types import JSON

Order = Literal["asc", "desc"]


class Page(Strict):
    """Which part of a list is asked for.  after: the id of the last one that is known."""

    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Order = "asc"


def page_of(whole: Sequence[dict[str, JSON]], page: Page) -> JSON:
    """The part of a list that is all there.  Raises BadCall for an `after` that is not in it."""
    cut = Cut(page)
    for one in whole if page.order == "asc" else reversed(whole):
        cut.take(one)
    return cut.told()


async def page_among(ordered: AsyncIterator[dict[str, JSON]], page: Page) -> JSON:
    """The part of a list that comes in the order of the page; no more of it than the page is in memory.

    Raises BadCall for an `after` that is not in it.
    """
    cut = Cut(page)
    async for one in ordered:
        cut.take(one)
        if page.after is None and cut.full:  # else `after` may come once more, and its last place counts
            break
    return cut.told()


class Cut:
    """A page of what is told it one by one."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.some: list[dict[str, JSON]] | None = [] if page.after is None else None
        """What comes after the last place of `after`, up to one more than wanted; None before there is one."""

    @property
    def full(self) -> bool:
        return self.some is not None and len(self.some) > self.page.limit

    def take(self, one: dict[str, JSON]) -> None:
        if one["id"] == self.page.after:
            self.some = []
        elif self.some is not None and not self.full:
            self.some.append(one)

    def told(self) -> JSON:
        if self.some is None:
            message = f"Invalid 'after': there is no '{(self.page.after or '')[:100]}'."
            raise BadCall(message, param="after")
        return listed(self.some[: self.page.limit], self.full)


def listed(data: Sequence[dict[str, JSON]], more: bool) -> JSON:
    ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": ends[0], "last_id": ends[1], "has_more": more}


def document(told: JSON) -> web.Response:
    return web.Response(body=orjson.dumps(told), content_type="application/json")
