"""The first tables.

A copy, not an import of `tables`: a migration must stay the same when those change.
"""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "one", None


def upgrade() -> None:
    texts = ("owner", "kind", "model", "status", "parent", "head", "input", "output", "events")
    op.create_table(
        "stored_answers",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False, server_default="") for name in texts),
        sa.Column("beat", sa.BigInteger, nullable=True),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    op.create_index("stored_answers_owner", "stored_answers", ["owner", "kind", "at", "id"])
    op.create_index("stored_answers_at", "stored_answers", ["at"])
    op.create_index("stored_answers_parent", "stored_answers", ["parent"])
    op.create_index("stored_answers_beat", "stored_answers", ["beat"])
    op.create_table(
        "stored_labels",
        sa.Column("answer", sa.Text, sa.ForeignKey("stored_answers.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
