"""A row of attempts may stand for several: successful first attempts are combined."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "three", "two"


def upgrade() -> None:
    op.add_column("usage_attempts", sa.Column("times", sa.Integer, nullable=False, server_default="1"))
