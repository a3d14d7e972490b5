"""The first tables.

Written out instead of imported from `tables`, so that later changes there do not alter this migration.
"""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "one", None

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False, server_default="") for name in names]


def counts(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False, server_default="0") for name in names]


def of_talk() -> sa.Column[int]:
    return sa.Column("talk", sa.BigInteger, sa.ForeignKey("conversations.number", ondelete="CASCADE"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "conversations",
        sa.Column("number", NUMBER, primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("id", sa.String(128), nullable=False),
        *texts("title", "titled", "model", "system", "metadata", "parent"),
        *counts("created", "updated", "messages", "next", "first", "prompt_tokens", "completion_tokens"),
        *counts("read_letters", "read_tokens"),
        *texts("holder"),
        *counts("held_until"),
    )
    op.create_index("conversations_id", "conversations", ["owner", "id"], unique=True)
    op.create_index("conversations_updated", "conversations", ["owner", "updated", "number"])
    op.create_index("conversations_old", "conversations", ["updated"])
    messages()
    op.create_table(
        "conversations_summaries",
        sa.Column("number", NUMBER, primary_key=True),
        of_talk(),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("upto", sa.BigInteger, nullable=False),
        *counts("at"),
        *texts("text", "model"),
    )
    op.create_index("conversations_summary", "conversations_summaries", ["talk", "upto"])


def messages() -> None:
    op.create_table(
        "conversations_messages",
        sa.Column("number", NUMBER, primary_key=True),
        sa.Column("id", sa.String(64), nullable=False),
        of_talk(),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        *counts("at"),
        *texts("role", "text", "body", "items", "status", "finish", "model", "call"),
        sa.Column("prompt_tokens", sa.BigInteger),
        sa.Column("completion_tokens", sa.BigInteger),
    )
    op.create_index("conversations_position", "conversations_messages", ["talk", "owner", "position"], unique=True)
    op.create_index("conversations_message", "conversations_messages", ["id"], unique=True)
    searched()


def searched() -> None:
    """The full-text index, which the database itself keeps up to date."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "ALTER TABLE conversations_messages ADD COLUMN words tsvector "
            "GENERATED ALWAYS AS (to_tsvector('simple', left(text, 200000))) STORED"
        )
        op.execute("CREATE INDEX conversations_words ON conversations_messages USING gin (words)")
        return
    op.execute(
        "CREATE VIRTUAL TABLE conversations_found "
        "USING fts5(text, content='conversations_messages', content_rowid='number')"
    )
    new = "INSERT INTO conversations_found(rowid, text) VALUES (new.number, new.text);"
    old = "INSERT INTO conversations_found(conversations_found, rowid, text) VALUES ('delete', old.number, old.text);"
    for name, event, then in (
        ("added", "INSERT", new),
        ("removed", "DELETE", old),
        ("changed", "UPDATE OF text", f"{old} {new}"),
    ):
        op.execute(
            f"CREATE TRIGGER conversations_found_{name} AFTER {event} ON conversations_messages BEGIN {then} END"
        )
