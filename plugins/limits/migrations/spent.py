"""The spending of each budget."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "spent", None


def upgrade() -> None:
    op.create_table(
        "limits_spent",
        sa.Column("counter", sa.Text, primary_key=True),
        sa.Column("begins", sa.BigInteger, nullable=False, index=True),
        sa.Column("spent", sa.BigInteger, nullable=False),
    )
