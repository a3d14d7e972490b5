"""The first tables.

Written out instead of imported from `tables`, so that later changes there do not alter this migration.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision, down_revision = "one", None

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False, server_default="") for name in names]


def counts(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False, server_default="0") for name in names]


def maybes(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=True) for name in names]


def small(name: str, **more: Any) -> sa.Column[int]:
    return sa.Column(name, sa.SmallInteger, **more)


def of_comparison() -> sa.Column[int]:
    reference = sa.ForeignKey("comparison_rounds.number", ondelete="CASCADE")
    return sa.Column("comparison", sa.BigInteger, reference, primary_key=True)


def upgrade() -> None:
    op.create_table(
        "comparison_rounds",
        sa.Column("number", NUMBER, primary_key=True),
        sa.Column("id", sa.String(64), nullable=False),
        *texts("owner"),
        sa.Column("at", sa.BigInteger, nullable=False),
        *texts("prompt", "asked"),
        small("blind", nullable=False),
        small("vote", nullable=True),
        *counts("bytes"),
    )
    op.create_index("comparison_rounds_id", "comparison_rounds", ["id"], unique=True)
    op.create_index("comparison_rounds_owner", "comparison_rounds", ["owner", "number"])
    op.create_index("comparison_rounds_at", "comparison_rounds", ["at"])
    results()
    op.create_table(
        "comparison_judgements",
        of_comparison(),
        sa.Column("judge", sa.String(600), primary_key=True),
        small("one", primary_key=True, autoincrement=False),
        small("other", primary_key=True, autoincrement=False),
        small("winner", nullable=True),
        small("agreed", nullable=False),
        *texts("criteria", "reasons", "error"),
        sa.Column("at", sa.BigInteger, nullable=False),
    )


def results() -> None:
    op.create_table(
        "comparison_results",
        of_comparison(),
        small("place", primary_key=True, autoincrement=False),
        *texts("model", "named", "response", "thinking"),
        small("success", nullable=False),
        *counts("duration_ns", "eval_ns", "letters"),
        *maybes("first_ns", "eval_count", "prompt_eval_count", "cost"),
        small("cached", nullable=False, server_default="0"),
        small("cut", nullable=False, server_default="0"),
        *texts("currency", "finish", "request", "error_code", "error", "cache_key"),
        small("rating", nullable=False, server_default="0"),
    )
