"""The first tables.

A copy, not an import of `tables`: a migration must stay the same when those change.
"""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "one", None


def texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False, server_default="") for name in names]


def counts(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False, server_default="0") for name in names]


def job() -> sa.Column[str]:
    key = sa.ForeignKey("finetuning_jobs.id", ondelete="CASCADE")
    return sa.Column("job", sa.String(64), key, nullable=False)


def upgrade() -> None:
    jobs()
    progress()


def jobs() -> None:
    op.create_table(
        "finetuning_jobs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        *texts("model", "trainer", "training_file", "validation_file", "tuned", "hyper", "metadata", "results"),
        *counts("seed"),
        *texts("suffix", "code", "error", "param", "holder"),
        sa.Column("server", sa.String(64), nullable=False, server_default=""),
        sa.Column("starts", sa.Integer, nullable=False, server_default="0"),
        *counts("tokens", "trained", "done", "total", "until", "at", "began", "ended"),
        sa.Column("gone", sa.SmallInteger, nullable=False, server_default="0"),
    )
    op.create_index("finetuning_jobs_owner", "finetuning_jobs", ["owner", "at", "id"])
    op.create_index("finetuning_jobs_status", "finetuning_jobs", ["status", "at"])


def progress() -> None:
    op.create_table(
        "finetuning_events",
        job(),
        sa.Column("number", sa.Integer, nullable=False),
        *counts("at"),
        sa.Column("level", sa.String(8), nullable=False),
        sa.Column("sample", sa.Integer, nullable=False, server_default="-1"),
        *texts("message", "data"),
        sa.PrimaryKeyConstraint("job", "number"),
    )
    op.create_table(
        "finetuning_checkpoints",
        sa.Column("id", sa.String(64), primary_key=True),
        job(),
        sa.Column("name", sa.Text, nullable=False),
        *counts("step", "at"),
        *texts("metrics"),
    )
    op.create_index("finetuning_checkpoints_job", "finetuning_checkpoints", ["job", "at", "id"])
