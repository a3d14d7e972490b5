"""The first tables.

A copy, not an import of `tables`: a migration must stay the same when those change.
"""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "one", None


def upgrade() -> None:
    op.create_table(
        "files_files",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False, server_default=""),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("pieces", sa.Integer, nullable=False, server_default="0"),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("changed", sa.BigInteger, nullable=False),
        sa.Column("expires", sa.BigInteger, nullable=True),
    )
    op.create_index("files_files_owner", "files_files", ["owner", "at", "id"])
    op.create_index("files_files_status", "files_files", ["status", "changed"])
    op.create_index("files_files_expires", "files_files", ["expires"])
    op.create_table(
        "files_pieces",
        sa.Column("file", sa.String(64), sa.ForeignKey("files_files.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("content", sa.LargeBinary, nullable=False),
    )
