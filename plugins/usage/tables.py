"""The tables of records.  Times are microseconds since 1970 in UTC, money billionths of the currency's unit."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, SmallInteger, String, Table

from proxy.sql.columns import NUMBER, count, maybe, text
from proxy.sql.feature import Feature

FEATURE: Final = Feature("usage", Path(__file__).parent / "migrations")
METADATA: Final = MetaData()


CALLS: Final = Table(
    "usage_calls",
    METADATA,
    Column("id", NUMBER, primary_key=True),
    Column("at", BigInteger, nullable=False),
    text("call"),
    text("caller"),
    text("key_id"),
    text("route"),
    Column("stream", SmallInteger, nullable=False),
    text("asked"),
    text("model"),
    text("upstream"),
    *map(maybe, ("prompt_tokens", "completion_tokens", "cached_tokens", "thinking_tokens")),
    text("estimated"),
    *map(count, ("queue_ns", "load_ns", "prompt_ns", "eval_ns")),
    maybe("first_ns"),
    count("total_ns"),
    text("cache"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    *map(text, ("fallback", "finish", "error", "currency")),
    *map(maybe, ("cost", "prompt_cost")),
    count("saved"),
    *map(maybe, ("cloud", "energy_mj", "power")),
    *map(text, ("conversation", "arm", "template", "client_user", "metadata", "tags", "cache_key")),
    Column("rating", SmallInteger, nullable=False, server_default="0"),
    text("comment"),
    Index("usage_calls_at", "at"),
    Index("usage_calls_caller", "caller", "at"),
    Index("usage_calls_call", "call"),
)
"""One row per call."""

ATTEMPTS: Final = Table(
    "usage_attempts",
    METADATA,
    Column("id", NUMBER, primary_key=True),
    Column("at", BigInteger, nullable=False),
    *map(text, ("call", "caller", "route", "model", "upstream")),
    Column("number", Integer, nullable=False),
    text("error"),
    count("micros"),
    Column("times", Integer, nullable=False, server_default="1"),
    Index("usage_attempts_at", "at"),
)
"""One row per attempt; successful first attempts are combined into one row, without `call`, for that many `times`.

micros: the total of all of them.  number 0: not an attempt, but a fallback to this model after `error`.
"""

DIMENSIONS: Final = ("caller", "key_id", "route", "model", "upstream", "error", "currency", "template")
COUNTS: Final = (
    "calls",
    "failed",
    "left_early",
    "hits",
    "shared",
    "misses",
    "fallbacks",
    "estimated",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "thinking_tokens",
    "generated_tokens",
    "queue_us",
    "load_us",
    "prompt_us",
    "eval_us",
    "answered",
    "total_us",
    "begun",
    "first_us",
    "priced",
    "cost",
    "prompt_cost",
    "saved",
    "compared",
    "cloud",
    "energy_mj",
    "power",
    "up",
    "down",
)
"""generated_tokens: tokens whose generation time is in `eval_us`.  answered, begun: the number of calls in `total_us`
and `first_us`.  priced, compared: the number of calls whose `cost` and `cloud` are known."""
BINS: Final = ("total_bins", "first_bins")


def sums(name: str) -> Table:
    return Table(
        name,
        METADATA,
        Column("id", String(32), primary_key=True),
        Column("own", SmallInteger, nullable=False),
        Column("start", BigInteger, nullable=False),
        *map(text, DIMENSIONS),
        *map(count, COUNTS),
        *map(text, BINS),
        Index(f"{name}_start", "own", "start"),
        Index(f"{name}_caller", "caller", "start"),
    )


SUMS: Final = {60: sums("usage_minutes"), 3600: sums("usage_hours"), 86_400: sums("usage_days")}
"""Sums by span in seconds.  own 0: everybody's together, without caller and key; 1: a single caller's.

id: the time, and a hash of the rest of the key.
"""

BATCHES: Final = Table(
    "usage_batches", METADATA, Column("id", String(32), primary_key=True), Column("at", BigInteger, nullable=False)
)
"""Ids of written batches, so that a batch is not written twice if its confirmation was lost."""

PRICES: Final = Table(
    "usage_prices",
    METADATA,
    Column("id", NUMBER, primary_key=True),
    Column("at", BigInteger, nullable=False),
    *map(text, ("kind", "pattern", "currency")),
    *map(count, ("input", "output")),
    maybe("cached"),
    Column("ended", SmallInteger, nullable=False, server_default="0"),
    *map(text, ("like", "set_by")),
)
"""Prices that were set while the server ran, per million tokens.  kind: `models` or `cloud`."""
