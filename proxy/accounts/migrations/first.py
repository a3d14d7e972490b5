"""Users, keys, and the secret that keys are hashed with."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "first", None


def upgrade() -> None:
    op.create_table(
        "accounts_users",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("name", sa.String(128), nullable=False, unique=True),
        sa.Column("role", sa.String(8), nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("disabled", sa.BigInteger),
    )
    op.create_index("accounts_users_created", "accounts_users", ["created", "id"])
    op.create_table(
        "accounts_keys",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("user_id", sa.String(40), sa.ForeignKey("accounts_users.id", ondelete="CASCADE"), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("prefix", sa.String(24), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        sa.Column("role", sa.String(8), nullable=False),
        sa.Column("models", sa.JSON),
        sa.Column("routes", sa.JSON),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("expires", sa.BigInteger),
        sa.Column("revoked", sa.BigInteger),
        sa.Column("last_used", sa.BigInteger),
    )
    op.create_index("ix_accounts_keys_user_id", "accounts_keys", ["user_id"])
    op.create_index("accounts_keys_created", "accounts_keys", ["created", "id"])
    op.create_table(
        "accounts_secrets",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.String(128), nullable=False),
    )
