"""Rows of calls as CSV, read and sent in chunks."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from aiohttp import web
from pydantic import Field, model_validator
from sqlalchemy import select

from plugins.usage import figures
from plugins.usage.figures import WithUser
from plugins.usage.money import day_of, midnight, spelled
from plugins.usage.tables import CALLS
from proxy.host import Host
from proxy.types import Route

CHUNK: Final = 1000
"""Rows read at once."""
MONEY: Final = ("cost", "prompt_cost", "saved", "cloud", "power")
HIDDEN: Final = ("id", "tags", "cache_key")
COLUMNS: Final = tuple(column.name for column in CALLS.columns if column.name not in HIDDEN)
HEAD: Final = (*COLUMNS, "tokens_per_second")
HEADERS: Final = {
    "Content-Type": "text/csv; charset=utf-8",
    "Content-Disposition": 'attachment; filename="usage.csv"',
}
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")


class Span(WithUser):
    """The days from and to, both included, in UTC; by default the last thirty."""

    since: date | None = Field(None, alias="from")
    to: date | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Span:
        if self.since and self.to and self.to < self.since:
            raise ValueError("`to` is `from` or a later day")
        return self

    def limits(self, now: float) -> tuple[int, int]:
        """In microseconds; the second is exclusive."""
        last = min(self.to or max(day_of(now), self.since or date.min), date.max - timedelta(1))
        first = self.since or max(last, date.min + timedelta(30)) - timedelta(29)
        return midnight(max(first, date(1970, 1, 1))) * 10**6, midnight(last + timedelta(1)) * 10**6


class Export:
    def __init__(self, host: Host) -> None:
        self.host = host

    def routes(self) -> Iterable[Route]:
        yield Route("GET", "/api/metrics/export.csv", self.export, "user")

    async def export(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = self.host.requests.query(request, Span)
        caller = figures.whose(self.host.requests.caller(request), asked.user)
        chunks = self.chunks(caller, *asked.limits(self.host.clock.time()))
        return await self.host.requests.streamed(request, chunks, HEADERS)

    async def chunks(self, caller: str | None, since: int, until: int) -> AsyncIterator[bytes]:
        """Sorted by time.  No transaction stays open while a client reads."""
        rows = await self.some(caller, (since, -1), until)
        yield lines([HEAD, *map(cells, rows)])
        while rows and (rows := await self.some(caller, (rows[-1]["at"], rows[-1]["id"]), until)):
            yield lines(map(cells, rows))

    async def some(self, caller: str | None, after: tuple[int, int], until: int) -> Sequence[Any]:
        at, id = CALLS.c.at, CALLS.c.id
        later = (at > after[0]) | ((at == after[0]) & (id > after[1]))
        query = select(CALLS).where(at >= after[0], later, at < until).order_by(at, id).limit(CHUNK)
        if caller is not None:
            query = query.where(CALLS.c.caller == caller)
        async with self.host.database.reading() as connection:
            return (await connection.execute(query)).mappings().all()


def lines(rows: Iterable[Sequence[Any]]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode()


def cells(row: Any) -> list[Any]:
    speed = figures.ratio((row["completion_tokens"] or 0) * 10**9, row["eval_ns"], 2)
    return [*(cell(name, row[name]) for name in COLUMNS), "" if speed is None else speed]


def cell(name: str, value: Any) -> Any:
    if value is None:
        return ""
    if name == "at":
        return datetime.fromtimestamp(value / 1e6, UTC).isoformat()
    if name in MONEY:
        return spelled(value)
    # Against CSV injection: a spreadsheet would run what a caller wrote if it looks like a formula.
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
