"""The tables of comparisons.  Times are in Unix microseconds, money in billionths of the currency's unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from sqlalchemy import BigInteger, Column, ForeignKey, Index, MetaData, SmallInteger, String, Table

from proxy.sql.columns import NUMBER, count, maybe, text
from proxy.sql.feature import Feature

FEATURE: Final = Feature("comparison", Path(__file__).parent / "migrations")
METADATA: Final = MetaData()


def small(name: str, **more: Any) -> Column[int]:
    return Column(name, SmallInteger, **more)


def of_comparison() -> Column[int]:
    reference = ForeignKey("comparison_rounds.number", ondelete="CASCADE")
    return Column("comparison", BigInteger, reference, primary_key=True)


ROUNDS: Final = Table(
    "comparison_rounds",
    METADATA,
    Column("number", NUMBER, primary_key=True),
    Column("id", String(64), nullable=False),
    text("owner"),
    Column("at", BigInteger, nullable=False),
    *map(text, ("prompt", "asked")),
    small("blind", nullable=False),
    small("vote", nullable=True),
    count("bytes"),
    Index("comparison_rounds_id", "id", unique=True),
    Index("comparison_rounds_owner", "owner", "number"),
    Index("comparison_rounds_at", "at"),
)
"""One row per comparison.  asked: JSON of messages and options.  vote: the place of the answer that won, or TIE or
NONE_GOOD; NULL before the vote.  bytes: the stored size of question and answers."""

RESULTS: Final = Table(
    "comparison_results",
    METADATA,
    of_comparison(),
    small("place", primary_key=True, autoincrement=False),
    *map(text, ("model", "named", "response", "thinking")),
    small("success", nullable=False),
    *map(count, ("duration_ns", "eval_ns", "letters")),
    *map(maybe, ("first_ns", "eval_count", "prompt_eval_count", "cost")),
    small("cached", nullable=False, server_default="0"),
    small("cut", nullable=False, server_default="0"),
    *map(text, ("currency", "finish", "request", "error_code", "error", "cache_key")),
    small("rating", nullable=False, server_default="0"),
    text("sources"),
)
"""One row per answer.  named: the normalised name of the model.  letters: characters of the full answer.
cut: whether it is stored shortened.  sources: a JSON list of the passages that it is based on; empty if none."""

JUDGEMENTS: Final = Table(
    "comparison_judgements",
    METADATA,
    of_comparison(),
    Column("judge", String(600), primary_key=True),
    small("one", primary_key=True, autoincrement=False),
    small("other", primary_key=True, autoincrement=False),
    small("winner", nullable=True),
    small("agreed", nullable=False),
    *map(text, ("criteria", "reasons", "error")),
    Column("at", BigInteger, nullable=False),
)
"""A judge's decision about two answers, given by their places; one row per pair and judge.  winner: a place, or TIE;
NULL if the judge failed, see `error`.  agreed: whether it decided the same in both orders.  reasons: a JSON list."""
