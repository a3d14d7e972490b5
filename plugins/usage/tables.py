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
"""One row a call."""

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
"""One row a try; those that went well at once are told together, without `call`, as one row for so many `times`.

micros: of all of them.  number 0: not a try, but the call's going on to this model after `error`.
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
"""generated_tokens: those whose time of making is in `eval_us`.  answered, begun: calls whose times are in `total_us`
and `first_us`.  priced, compared: calls whose `cost` and `cloud` are known."""
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
"""Sums over so many seconds.  own 0: everybody's together, without caller and key; 1: a caller's.

id: the time, and a digest of all else that tells it from others.
"""

BATCHES: Final = Table(
    "usage_batches", METADATA, Column("id", String(32), primary_key=True), Column("at", BigInteger, nullable=False)
)
"""What was written, so that what was written though its answer was lost is not written twice."""

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
"""Prices that were set while the server ran; money for a million tokens.  kind: `models` or `cloud`."""
