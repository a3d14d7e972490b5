"""Callers' ratings of answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

from aiohttp import web
from pydantic import AliasChoices, BeforeValidator, Field, StringConstraints
from sqlalchemy import select, update
from sqlalchemy.engine import RowMapping

from plugins.usage import sums
from plugins.usage.figures import document
from plugins.usage.rows import CallRow
from plugins.usage.statements import alone
from plugins.usage.tables import CALLS
from plugins.usage.writer import Writer
from proxy.announcements import Rated
from proxy.config import Strict
from proxy.errors import NotFound
from proxy.host import Host
from proxy.sql.backlog import EVERY
from proxy.types import Route

Said = Literal["up", "down", "none"]
WORTH: Final[dict[Said, int]] = {"up": 1, "down": -1, "none": 0}
WORDS: Final[dict[int, Said]] = {number: word for word, number in WORTH.items()}


def _word(given: object) -> object:
    return WORDS.get(given, given) if type(given) is int else given


Rating = Annotated[Said, BeforeValidator(_word)]


class Rate(Strict):
    """rating: `up`, `down` or `none`; or 1, -1 or 0."""

    rating: Annotated[Rating, Field(validation_alias=AliasChoices("rating", "user_rating"))]
    comment: Annotated[str, StringConstraints(max_length=4000)] | None = None


class Feedback(Rate):
    request_id: Annotated[str, StringConstraints(min_length=1, max_length=128)]


class Ratings:
    def __init__(self, writer: Writer, host: Host) -> None:
        self.writer = writer
        self.host = host

    def routes(self) -> Iterable[Route]:
        yield Route("POST", "/api/metrics/{id}/rate", self.rate, "user")
        yield Route("POST", "/v1/feedback", self.feedback, "user")

    async def rate(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        return await self.rated(request, id, await self.host.requests.form(request, Rate))

    async def feedback(self, request: web.BaseRequest) -> web.StreamResponse:
        form = await self.host.requests.form(request, Feedback)
        return await self.rated(request, form.request_id, form)

    async def rated(self, request: web.BaseRequest, id: str, form: Rate) -> web.StreamResponse:
        caller = self.host.requests.caller(request).name
        row = await self.changed(id, caller, form)
        self.host.announce(Rated(id, caller, form.rating, row["cache_key"]))
        return document({"request_id": id, "rating": form.rating})

    async def changed(self, id: str, caller: str, form: Rate) -> RowMapping:
        """Write the rating; returns the call's row.  Raises NotFound, also for another caller's call."""
        await self.writer.flush()
        for again in (True, False):
            if "\0" not in id and (row := await self.change(id, caller, form)) is not None:
                return row
            if again:  # another process may have the call and not have written it yet
                await asyncio.sleep(EVERY)
        raise NotFound("No call of yours has this request id.", param="request_id", code="call_not_found")

    async def change(self, id: str, caller: str, form: Rate) -> RowMapping | None:
        """Rates the newest call with this id: a client may use one id for several calls."""
        mine = (CALLS.c.call == id) & (CALLS.c.caller == caller)
        async with self.host.database.writing() as connection:
            await alone(connection)
            query = select(CALLS).where(mine).order_by(CALLS.c.at.desc(), CALLS.c.id.desc()).limit(1)
            row = (await connection.execute(query)).mappings().first()
            if row is None:
                return None
            new: dict[str, Any] = {"rating": WORTH[form.rating]}
            if form.comment is not None:
                new["comment"] = form.comment.replace("\0", "")
            await connection.execute(update(CALLS).where(CALLS.c.id == row["id"]).values(**new))
            if difference := difference_of(row["rating"], new["rating"]):
                call = CallRow(*(row[name] for name in CallRow._fields))
                await sums.add(connection, sums.everywhere(sums.kind_of(call), difference))
        return row


def difference_of(old: int, new: int) -> dict[str, int]:
    """What a changed rating adds to the sums."""
    counts = {"up": (new > 0) - (old > 0), "down": (new < 0) - (old < 0)}
    return {name: count for name, count in counts.items() if count}
