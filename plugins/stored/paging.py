"""Lists in OpenAI's shape: a page after an id."""

from __future__ import annotations

from collections.abc import Sequence
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
    ordered = list(whole) if page.order == "asc" else list(reversed(whole))
    first = 0
    if page.after is not None:
        places = [index for index, one in enumerate(ordered) if one["id"] == page.after]
        if not places:
            raise BadCall(f"Invalid 'after': nothing here is called '{page.after[:100]}'.", param="after")
        first = places[-1] + 1
    data = ordered[first : first + page.limit]
    return listed(data, len(ordered) > first + page.limit)


def listed(data: Sequence[dict[str, JSON]], more: bool) -> JSON:
    ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": ends[0], "last_id": ends[1], "has_more": more}


def document(told: JSON) -> web.Response:
    return web.Response(body=orjson.dumps(told), content_type="application/json")
