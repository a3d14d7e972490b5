"""The first tables.

A copy, not an import of `tables`: a migration must stay the same when those change.
"""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "one", None

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False, server_default="") for name in names]


def counts(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False, server_default="0") for name in names]


def maybe(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=True) for name in names]


def upgrade() -> None:
    calls()
    attempts()
    for name in ("usage_minutes", "usage_hours", "usage_days"):
        sums(name)
    op.create_table(
        "usage_batches",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "usage_prices",
        sa.Column("id", ID, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        *texts("kind", "pattern", "currency"),
        *counts("input", "output"),
        *maybe("cached"),
        sa.Column("ended", sa.SmallInteger, nullable=False, server_default="0"),
        *texts("like", "set_by"),
    )


def calls() -> None:
    op.create_table(
        "usage_calls",
        sa.Column("id", ID, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        *texts("call", "caller", "key_id", "route"),
        sa.Column("stream", sa.SmallInteger, nullable=False),
        *texts("asked", "model", "upstream"),
        *maybe("prompt_tokens", "completion_tokens", "cached_tokens", "thinking_tokens"),
        *texts("estimated"),
        *counts("queue_ns", "load_ns", "prompt_ns", "eval_ns"),
        *maybe("first_ns"),
        *counts("total_ns"),
        *texts("cache"),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        *texts("fallback", "finish", "error", "currency"),
        *maybe("cost", "prompt_cost"),
        *counts("saved"),
        *maybe("cloud", "energy_mj", "power"),
        *texts("conversation", "arm", "client_user", "metadata", "tags", "cache_key"),
        sa.Column("rating", sa.SmallInteger, nullable=False, server_default="0"),
        *texts("comment"),
    )
    op.create_index("usage_calls_at", "usage_calls", ["at"])
    op.create_index("usage_calls_caller", "usage_calls", ["caller", "at"])
    op.create_index("usage_calls_call", "usage_calls", ["call"])


def attempts() -> None:
    op.create_table(
        "usage_attempts",
        sa.Column("id", ID, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        *texts("call", "caller", "route", "model", "upstream"),
        sa.Column("number", sa.Integer, nullable=False),
        *texts("error"),
        *counts("micros"),
    )
    op.create_index("usage_attempts_at", "usage_attempts", ["at"])


def sums(name: str) -> None:
    op.create_table(
        name,
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("own", sa.SmallInteger, nullable=False),
        sa.Column("start", sa.BigInteger, nullable=False),
        *texts("caller", "key_id", "route", "model", "upstream", "error", "currency"),
        *counts("calls", "failed", "left_early", "hits", "shared", "misses", "fallbacks", "estimated"),
        *counts("prompt_tokens", "completion_tokens", "cached_tokens", "thinking_tokens", "generated_tokens"),
        *counts("queue_us", "load_us", "prompt_us", "eval_us", "answered", "total_us", "begun", "first_us"),
        *counts("priced", "cost", "prompt_cost", "saved", "compared", "cloud", "energy_mj", "power", "up", "down"),
        *texts("total_bins", "first_bins"),
    )
    op.create_index(f"{name}_start", name, ["own", "start"])
    op.create_index(f"{name}_caller", name, ["caller", "start"])
