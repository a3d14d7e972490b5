"""The tables of experiments.  Times are microseconds since 1970 in UTC, money billionths of the currency's unit.

There are no foreign keys to experiments: if one was deleted just now, its remaining figures must not make the
transaction fail that also writes the figures of others.
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
"""taken: the name, as a unique column; null for experiments of the configuration, whose names the file decides.
definition: as JSON.  updated: for those of the configuration, also when a server last had it."""

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
"""answered, begun, priced: the number of calls behind `total_ns` and `tokens`, `first_ns`, and `cost`."""

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
"""The summed figures of each unit.  unit: a hash, or the number of a shared row."""

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
"""Results that callers recorded, summed by unit and metric name."""

NAMES: Final = Table("experiments_names", METADATA, key("experiment"), key("name"))
"""Names of metrics."""

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
"""Recent calls, so that later ratings and results can be assigned to them."""

BATCHES: Final = Table(
    "experiments_batches",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("at", BigInteger, nullable=False),
)
"""Ids of written batches, so that a batch is not written twice if its confirmation was lost."""
