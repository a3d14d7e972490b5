"""The first tables.

A copy, not an import of `tables`: a migration must stay the same when those change.
"""

import sqlalchemy as sa
from alembic import op

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
COUNTS = (
    "calls", "errors", "cached", "answered", "total_ns", "begun", "first_ns", "tokens", "priced", "cost", "up", "down",
)  # fmt: skip

revision, down_revision = "one", None


def key(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.String(80), primary_key=True)


def count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


def upgrade() -> None:
    op.create_table(
        "experiments_all",
        key("id"),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("taken", sa.String(64), nullable=True, unique=True),
        sa.Column("source", sa.String(8), nullable=False),
        sa.Column("status", sa.String(8), nullable=False),
        sa.Column("definition", sa.Text, nullable=False),
        *map(count, ("created", "updated", "started", "stopped")),
    )
    op.create_table(
        "experiments_stops",
        key("experiment"),
        key("variant"),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
    )
    op.create_table("experiments_names", key("experiment"), key("name"))
    op.create_table(
        "experiments_batches",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
    )
    counted()


def counted() -> None:
    op.create_table(
        "experiments_units",
        *map(key, ("experiment", "variant", "unit")),
        sa.Column("owner", sa.Text, nullable=False),
        *map(count, COUNTS),
    )
    op.create_index("experiments_units_owner", "experiments_units", ["owner"])
    op.create_table(
        "experiments_metrics",
        *map(key, ("experiment", "name", "variant", "unit")),
        sa.Column("owner", sa.Text, nullable=False),
        count("results"),
        sa.Column("total", sa.Double, nullable=False, server_default="0"),
    )
    op.create_index("experiments_metrics_owner", "experiments_metrics", ["owner"])
    op.create_table(
        "experiments_calls",
        sa.Column("id", ID, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("call", sa.String(200), nullable=False),
        sa.Column("caller", sa.Text, nullable=False),
        *(sa.Column(name, sa.String(80), nullable=False) for name in ("experiment", "variant", "unit")),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("rating", sa.SmallInteger, nullable=False, server_default="0"),
    )
    for name in ("call", "at", "caller"):
        op.create_index(f"experiments_calls_{name}", "experiments_calls", [name])
