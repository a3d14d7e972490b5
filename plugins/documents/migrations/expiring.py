"""Adds the expiry of files to their documents."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "expiring", "vectorstores"


def upgrade() -> None:
    op.add_column("documents_origins", sa.Column("expires", sa.BigInteger, nullable=True))
    op.create_index("documents_origins_expires", "documents_origins", ["expires"])
