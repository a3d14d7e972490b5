"""Lists in OpenAI's shape, paginated by id."""

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
    """Which part of a list to return.  after: the last id of the previous page."""

    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Order = "asc"


def page_of(whole: Sequence[dict[str, JSON]], page: Page) -> JSON:
    """A page of a complete list.  Raises BadCall if `after` is not in it."""
    cut = PageCollector(page)
    for one in whole if page.order == "asc" else reversed(whole):
        cut.take(one)
    return cut.page_as_json()


async def page_among(ordered: AsyncIterator[dict[str, JSON]], page: Page) -> JSON:
    """A page of a list that arrives in the page's order; no more than a page of it is in memory.

    Raises BadCall if `after` is not in the list.
    """
    cut = PageCollector(page)
    async for one in ordered:
        cut.take(one)
        if page.after is None and cut.full:  # otherwise `after` may occur again, and its last occurrence counts
            break
    return cut.page_as_json()


class PageCollector:
    """Collects a page from items that arrive one by one."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.some: list[dict[str, JSON]] | None = [] if page.after is None else None
        """The items after the last occurrence of `after`, up to one more than the limit; None until it is found."""

    @property
    def full(self) -> bool:
        return self.some is not None and len(self.some) > self.page.limit

    def take(self, one: dict[str, JSON]) -> None:
        if one["id"] == self.page.after:
            self.some = []
        elif self.some is not None and not self.full:
            self.some.append(one)

    def page_as_json(self) -> JSON:
        if self.some is None:
            message = f"Invalid 'after': there is no '{(self.page.after or '')[:100]}'."
            raise BadCall(message, param="after")
        return listed(self.some[: self.page.limit], self.full)


def listed(data: Sequence[dict[str, JSON]], more: bool) -> JSON:
    ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": ends[0], "last_id": ends[1], "has_more": more}


def document(body: JSON) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")
