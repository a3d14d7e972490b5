"""The figures of an experiment, summed by the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Double, case, cast, func, select
from sqlalchemy.engine import RowMapping
from sqlalchemy.sql.elements import KeyedColumnElement

from plugins.experiments.assigning import BUCKET
from plugins.experiments.statistics import Moments
from plugins.experiments.tables import METRICS, UNITS
from proxy.sql.database import Database


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of two columns.  scale: factor for x.  share: whether x counts a subset of what n counts."""

    x: str
    n: str
    scale: float = 1.0
    share: bool = False


RATIOS: Final = {
    "errors": Ratio("errors", "calls", share=True),
    "seconds": Ratio("total_ns", "answered", 1e-9),
    "first_seconds": Ratio("first_ns", "begun", 1e-9),
    "completion_tokens": Ratio("tokens", "answered"),
    "cost": Ratio("cost", "priced", 1e-9),
    "cached": Ratio("cached", "calls", share=True),
    "up": Ratio("up", "calls", share=True),
    "down": Ratio("down", "calls", share=True),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of one variant.  shared: the number of rows that are shared by many units."""

    units: int = 0
    shared: int = 0
    calls: int = 0
    moments: Mapping[str, Moments] | None = None

    def of(self, metric: str) -> Moments:
        return (self.moments or {}).get(metric, Moments())


async def measured(database: Database, experiment: str, only: str | None = None) -> dict[str, Measured]:
    """By variant.  only: a single metric, which takes an eighth of the time.  Raises DatabaseAway."""
    at = UNITS.c
    ratios = {name: ratio for name, ratio in RATIOS.items() if only in (None, name)}
    shared = case((at.unit.startswith(BUCKET), 1), else_=0)
    columns: list[Any] = [
        func.count().label("units"),
        func.sum(shared).label("shared"),
        func.sum(at.calls).label("all"),
    ]
    for name, ratio in ratios.items():
        columns += sums(name, at[ratio.x], at[ratio.n], ratio.scale)
    query = select(at.variant, *columns).where(at.experiment == experiment).group_by(at.variant)
    own = METRICS.c
    custom = select(own.variant, own.name, *sums("own", own.total, own.results, 1.0))
    async with database.reading() as connection:
        rows = (await connection.execute(query)).mappings().all()
        told = await connection.execute(custom.where(own.experiment == experiment).group_by(own.variant, own.name))
        others = told.mappings().all()
    found: dict[str, Measured] = {}
    for row in rows:
        moments = {name: moments_of(row, name, ratio.share) for name, ratio in ratios.items()}
        moments |= {one["name"]: moments_of(one, "own", False) for one in others if one["variant"] == row["variant"]}
        found[row["variant"]] = Measured(
            row["units"] - int(row["shared"]), int(row["shared"]), int(row["all"]), moments
        )
    return found


def sums(name: str, x: KeyedColumnElement[Any], n: KeyedColumnElement[Any], scale: float) -> list[ColumnElement[Any]]:
    """As floats, because squares of nanoseconds overflow a database's integers."""
    mine, theirs = cast(x, Double) * scale, cast(n, Double)
    parts = {
        "units": func.sum(case((n > 0, 1), else_=0)),
        "x": func.sum(mine),
        "n": func.sum(theirs),
        "xx": func.sum(mine * mine),
        "xn": func.sum(mine * theirs),
        "nn": func.sum(theirs * theirs),
    }
    return [column.label(f"{name}__{part}") for part, column in parts.items()]


def moments_of(row: RowMapping, name: str, share: bool) -> Moments:
    x, n, xx, xn, nn = (float(row[f"{name}__{part}"]) for part in ("x", "n", "xx", "xn", "nn"))
    return Moments(int(row[f"{name}__units"]), x, n, xx, xn, nn, share)
