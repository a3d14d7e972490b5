"""Sums, read from the database and formatted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from aiohttp import web
from sqlalchemy import Column, ColumnElement, Select, Table, func, select

from plugins.usage import bins
from plugins.usage.tables import BINS, SUMS
from proxy.config import Strict
from proxy.sql.database import Database
from proxy.types import JSON, Caller

DAY: Final = 86_400
MICRO: Final = 1_000_000
BILLION: Final = 1_000_000_000
MONEY: Final = ("cost", "prompt_cost", "saved", "cloud", "power")
UNITS: Final = "_units"
Found = Mapping[str, Any]
"""A group: the values that it was grouped by, and the sums of the columns."""
PERCENTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
TOLD: Final = (
    "calls", "failed", "left_early", "hits", "shared", "misses", "fallbacks", "prompt_tokens", "completion_tokens",
    "cached_tokens", "thinking_tokens", "estimated", "generated_tokens", "queue_us", "load_us", "eval_us", "answered",
    "total_us", "begun", "first_us", "up", "down", *BINS,
)  # fmt: skip
"""The columns that figures need; amounts of money are read separately."""
NOTHING: Final[Found] = {**dict.fromkeys(TOLD, 0), **dict.fromkeys(BINS, "")}


@dataclass(frozen=True, slots=True)
class Window:
    """Which sums to read.  since, until: Unix seconds, multiples of `span`; until is exclusive.

    caller: only this one's; None is everybody's.  models: only these, None is all; routes: likewise.
    """

    since: int
    until: int
    span: int = DAY
    caller: str | None = None
    models: Sequence[str] | None = None
    routes: Sequence[str] | None = None
    keys: Sequence[str] | None = None
    callers: Sequence[str] | None = None

    @property
    def table(self) -> Table:
        return SUMS[self.span]

    def conditions(self, by_caller: bool) -> Iterable[ColumnElement[bool]]:
        """by_caller: whether to group by caller or key, which everybody's sums do not contain."""
        at = self.table.c
        yield at.start >= self.since * MICRO
        yield at.start < self.until * MICRO
        yield at.own == int(by_caller or (self.caller, self.keys, self.callers) != (None, None, None))
        if self.caller is not None:
            yield at.caller == self.caller
        for column, wanted in (
            (at.model, self.models),
            (at.route, self.routes),
            (at.key_id, self.keys),
            (at.caller, self.callers),
        ):
            if wanted is not None:
                yield column.in_(list(wanted))


def recorded(models: Sequence[str] | None, real: Callable[[str], str]) -> Sequence[str] | None:
    """The names under which calls of these models are recorded: those of aliases' models, with and without `:latest`.

    real: returns the name that an alias stands for.
    """
    if models is None:
        return None
    bare = [one.removesuffix(":latest") for one in (*models, *map(real, models))]
    return list(dict.fromkeys((*bare, *(f"{one}:latest" for one in bare))))


class WithUser(Strict):
    """Whose figures to return; admins may name anybody."""

    user: str | None = None


def whose(caller: Caller, user: str | None) -> str | None:
    """The user to filter by; None is everybody.  Raises Denied for others' figures."""
    return caller.whose(user)


async def read(database: Database, window: Window, *by: str, columns: Sequence[str] = TOLD) -> list[dict[str, Any]]:
    """A row per group, or without `by` a single one; no row if there was no call."""
    async with database.reading() as connection:
        rows = (await connection.execute(query(window, by, columns))).mappings().all()
    return [figures_of_row(row, by) for row in rows]


def figures_of_row(row: Mapping[str, Any], by: Sequence[str]) -> dict[str, Any]:
    found = {name: value if name in by else whole(value) for name, value in row.items()}
    for name in MONEY:
        if name + UNITS in found:
            found[name] += found.pop(name + UNITS) * BILLION
    return found


def query(window: Window, by: Sequence[str], columns: Sequence[str]) -> Select[Any]:
    groups = [window.table.c[name] for name in by]
    added = [one for name in columns for one in added_up(window.table.c[name])]
    chosen = select(*groups, *added).where(*window.conditions(bool({"caller", "key_id"} & set(by))))
    return chosen.group_by(*groups).order_by(*groups) if groups else chosen.having(func.count() > 0)


def added_up(column: Column[Any]) -> Iterable[ColumnElement[Any]]:
    """Money in two parts, because SQLite fails if a sum of billionths exceeds nine billion units."""
    if column.name in BINS:
        yield func.aggregate_strings(column, "").label(column.name)
    elif column.name in MONEY:
        yield func.sum(column % BILLION).label(column.name)
        yield func.sum(column // BILLION).label(column.name + UNITS)
    else:
        yield func.sum(column).label(column.name)


def whole(value: Any) -> Any:
    """As an int: PostgreSQL returns sums of integers as decimals."""
    return value if isinstance(value, str) else int(value or 0)


def figures_as_json(found: Found) -> dict[str, JSON]:
    """The figures of a sum."""
    looked = found["hits"] + found["shared"] + found["misses"]
    return {
        "total_requests": found["calls"],
        "errors": found["failed"],
        "client_left": found["left_early"],
        "error_rate": ratio(found["failed"], found["calls"]),
        "cache_hits": found["hits"] + found["shared"],
        "cache_hit_rate": ratio(found["hits"] + found["shared"], looked),
        "fallbacks": found["fallbacks"],
        "prompt_tokens": found["prompt_tokens"],
        "completion_tokens": found["completion_tokens"],
        "total_tokens": found["prompt_tokens"] + found["completion_tokens"],
        "cached_tokens": found["cached_tokens"],
        "thinking_tokens": found["thinking_tokens"],
        "estimated_requests": found["estimated"],
        **times(found),
        "satisfaction": {
            "up": found["up"],
            "down": found["down"],
            "share": ratio(found["up"], found["up"] + found["down"]),
        },
    }


def times(found: Found) -> dict[str, JSON]:
    """Means and percentiles in milliseconds; durations are those of answered calls."""
    return {
        "avg_duration": milliseconds(found["total_us"], found["answered"]),
        "duration": percentiles(found["total_bins"]),
        "avg_first_token": milliseconds(found["first_us"], found["begun"]),
        "first_token": percentiles(found["first_bins"]),
        "avg_queue": milliseconds(found["queue_us"], found["calls"]),
        "avg_load": milliseconds(found["load_us"], found["calls"]),
        "avg_tokens_per_sec": ratio(found["generated_tokens"] * MICRO, found["eval_us"], 2),
    }


def percentiles(text: str) -> dict[str, JSON]:
    counts = bins.read(text)
    found = {name: bins.percentile(counts, share) for name, share in PERCENTILES.items()}
    return {name: None if value is None else round(value / 1000, 3) for name, value in found.items()}


def ratio(part: int, of: int, digits: int = 4) -> float | None:
    return round(part / of, digits) if of else None


def milliseconds(micros: int, calls: int) -> float | None:
    return round(micros / calls / 1000, 3) if calls else None


def document(body: JSON) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")
