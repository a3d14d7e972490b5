"""Sums of calls by minute, hour and day, updated as calls are written, so that figures need not read all calls."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.usage import bins
from plugins.usage.rows import CallRow
from plugins.usage.statements import alone, insert_rows, rows_of, update_rows
from plugins.usage.tables import BINS, COUNTS, DIMENSIONS, SUMS

LEFT: Final = "client_left"
CHUNK: Final = 500
"""Sums read at once."""

Place = tuple[Any, ...]
"""The key of a sum: own, start, and the dimensions."""
Sums = dict[int, dict[Place, "SumIncrement"]]
"""By span in seconds."""

MINUTE: Final = 60_000_000
MOST: Final = 2**63 - 1
"""The maximum of a column: larger sums are capped, since otherwise no further call of the day could be written."""
WHOLE: Final = (
    "prompt_tokens", "completion_tokens", "cached_tokens", "thinking_tokens", "cost", "prompt_cost", "saved", "cloud",
    "energy_mj", "power",
)  # fmt: skip
"""Columns of calls that are added up unchanged."""
NAMES: Final = itemgetter(*map(CallRow._fields.index, DIMENSIONS))
ADDED: Final = (*COUNTS, *BINS)
COLUMNS: Final = ("id", "own", "start", *DIMENSIONS, *ADDED)
"""All columns of a table of sums."""


@dataclass(slots=True)
class SumIncrement:
    """What calls add to a sum.  counts: by column; spread: each distribution, by bin."""

    counts: Counter[str] = field(default_factory=Counter)
    spread: dict[str, Counter[int]] = field(default_factory=lambda: {name: Counter() for name in BINS})

    def add(self, other: SumIncrement) -> None:
        self.counts.update(other.counts)
        for name, more in other.spread.items():
            self.spread[name].update(more)


def of_calls(rows: Sequence[CallRow]) -> SumIncrement:
    """The sums of calls that have the same dimensions.

    Times are rounded to µs for each call, so that sums of sums are consistent.
    """
    column = dict(zip(CallRow._fields, zip(*rows, strict=True), strict=True))
    error, caches = rows[0].error, column["cache"]
    found = SumIncrement()
    counts = found.counts
    counts.update(
        calls=len(rows),
        failed=len(rows) if error not in ("", LEFT) else 0,
        left_early=len(rows) if error == LEFT else 0,
        hits=caches.count("hit"),
        shared=caches.count("shared"),
        misses=caches.count("miss"),
        fallbacks=len(rows) - column["fallback"].count(""),
        estimated=len(rows) - column["estimated"].count(""),
        priced=len(rows) - column["cost"].count(None),
        compared=len(rows) - column["cloud"].count(None),
        generated_tokens=sum(row.completion_tokens or 0 for row in rows if row.eval_ns),
    )
    for name in WHOLE:
        counts[name] = sum(filter(None, column[name]))
    for name in ("queue", "load", "prompt", "eval"):
        counts[f"{name}_us"] = sum([ns // 1000 for ns in column[f"{name}_ns"] if ns])
    if not error:
        add_times(found, column)
    return found


def add_times(found: SumIncrement, column: Mapping[str, Sequence[Any]]) -> None:
    """Only of answered calls: errors that are returned at once would make a server look fast."""
    for name, count in (("total", "answered"), ("first", "begun")):
        times = [ns // 1000 for ns in column[f"{name}_ns"] if ns is not None]
        found.counts[count], found.counts[f"{name}_us"] = len(times), sum(times)
        found.spread[f"{name}_bins"] = bins.counted(times)


def kind_of(row: CallRow) -> Place:
    """The key of the smallest sum that includes the call: a caller's, of a minute."""
    return row.at // MINUTE, *NAMES(row)


def places(kind: Place, span: int) -> Iterator[Place]:
    """The sums that include calls of this kind: everybody's, and the caller's."""
    minute, caller, key, *rest = kind
    start = minute * MINUTE - minute * MINUTE % (span * 1_000_000)
    yield 0, start, "", "", *rest
    yield 1, start, caller, key, *rest


def everywhere(kind: Place, added: Mapping[str, int]) -> Sums:
    """The same addition for every sum that includes calls of this kind."""
    return {span: {place: SumIncrement(Counter(added)) for place in places(kind, span)} for span in SUMS}


def summed(rows: Iterable[CallRow]) -> Sums:
    kinds: dict[Place, list[CallRow]] = {}
    for row in rows:
        kinds.setdefault(kind_of(row), []).append(row)
    sums: Sums = {span: {} for span in SUMS}
    for kind, some in kinds.items():
        added = of_calls(some)
        for span, found in sums.items():
            for place in places(kind, span):
                found.setdefault(place, SumIncrement()).add(added)
    return sums


def id_of(place: Place) -> str:
    """Begins with the time, so that sums of the same time are adjacent in the index."""
    digest = hashlib.blake2b("\x1f".join(map(str, place)).encode(), digest_size=12).hexdigest()
    return f"{place[1] // MINUTE:08x}{digest}"


async def add(connection: AsyncConnection, sums: Sums) -> None:
    """Add to the stored sums in the connection's transaction; other processes are locked out until it ends."""
    await alone(connection)
    for span, places in sums.items():
        by_id = {id_of(place): (place, added) for place, added in places.items()}
        ids = list(by_id)
        for at in range(0, len(ids), CHUNK):
            await add_some(connection, SUMS[span], {one: by_id[one] for one in ids[at : at + CHUNK]})


async def add_some(connection: AsyncConnection, table: Table, by_id: dict[str, tuple[Place, SumIncrement]]) -> None:
    known = {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in await rows_of(connection, table, list(by_id))}
    for one, had in known.items():
        _, added = by_id[one]
        for name in COUNTS:
            added.counts[name] += had[name]
        for name in BINS:
            added.spread[name].update(bins.read(had[name]))
    await update_rows(connection, table, ADDED, [(*columns(by_id[one][1]), one) for one in known])
    fresh = [(one, *place, *columns(added)) for one, (place, added) in by_id.items() if one not in known]
    await insert_rows(connection, table, COLUMNS, fresh)


def columns(one: SumIncrement) -> Sequence[Any]:
    return *(min(one.counts[name], MOST) for name in COUNTS), *(bins.written(one.spread[name]) for name in BINS)
