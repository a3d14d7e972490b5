"""The tables of experiments.  Times are microseconds since 1970 in UTC, money billionths of the currency's unit.

Nothing refers to an experiment by a foreign key: what was counted for one that was deleted just now must not keep from
being written what was counted for others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import BigInteger, Column, Double, Index, MetaData, SmallInteger, String, Table, Text

from proxy.sql.columns import NUMBER, count
from proxy.sql.feature import Feature

FEATURE: Final = Feature("experiments", Path(__file__).parent / "migrations")
METADATA: Final = MetaData()


def key(name: str) -> Column[str]:
    return Column(name, String(80), primary_key=True)


EXPERIMENTS: Final = Table(
    "experiments_all",
    METADATA,
    key("id"),
    Column("name", String(64), nullable=False),
    Column("taken", String(64), nullable=True, unique=True),
    Column("source", String(8), nullable=False),
    Column("status", String(8), nullable=False),
    Column("definition", Text, nullable=False),
    *map(count, ("created", "updated", "started", "stopped")),
)
"""taken: the name, which no other one may then have; not of those that the configuration has, whose file it is to name
them.  definition: as JSON.  updated: of those also when a server had it last."""

STOPS: Final = Table(
    "experiments_stops",
    METADATA,
    key("experiment"),
    key("variant"),
    Column("at", BigInteger, nullable=False),
    Column("why", Text, nullable=False),
)
"""Variants that a guard has stopped."""

COUNTS: Final = (
    "calls", "errors", "cached", "answered", "total_ns", "begun", "first_ns", "tokens", "priced", "cost", "up", "down",
)  # fmt: skip
"""answered, begun, priced: calls whose times and tokens, whose time until the first event, whose cost are added up."""

UNITS: Final = Table(
    "experiments_units",
    METADATA,
    key("experiment"),
    key("variant"),
    key("unit"),
    Column("owner", Text, nullable=False),
    *map(count, COUNTS),
    Index("experiments_units_owner", "owner"),
)
"""What the calls of a unit came to.  unit: a digest, or the number of a row that many share."""

METRICS: Final = Table(
    "experiments_metrics",
    METADATA,
    key("experiment"),
    key("name"),
    key("variant"),
    key("unit"),
    Column("owner", Text, nullable=False),
    count("results"),
    Column("total", Double, nullable=False, server_default="0"),
    Index("experiments_metrics_owner", "owner"),
)
"""What was told of a unit, by the name of the metric."""

NAMES: Final = Table("experiments_names", METADATA, key("experiment"), key("name"))
"""Of metrics."""

CALLS: Final = Table(
    "experiments_calls",
    METADATA,
    Column("id", NUMBER, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("call", String(200), nullable=False),
    Column("caller", Text, nullable=False),
    Column("experiment", String(80), nullable=False),
    Column("variant", String(80), nullable=False),
    Column("unit", String(80), nullable=False),
    Column("owner", Text, nullable=False),
    Column("rating", SmallInteger, nullable=False, server_default="0"),
    Index("experiments_calls_call", "call"),
    Index("experiments_calls_at", "at"),
    Index("experiments_calls_caller", "caller"),
)
"""Recent calls, so that what is said of them later is counted where it belongs."""

BATCHES: Final = Table(
    "experiments_batches",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("at", BigInteger, nullable=False),
)
"""What was written, so that what was written though its answer was lost is not written twice."""
