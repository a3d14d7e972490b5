"""The first tables.

A copy, not an import of `tables`: a migration must stay the same when those change.
"""

import sqlalchemy as sa
from alembic import op

SORTED = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")

revision, down_revision = "one", None


def template() -> sa.Column[str]:
    reference = sa.ForeignKey("templates_custom.id", ondelete="CASCADE")
    return sa.Column("template", sa.String(64), reference, primary_key=True)


def upgrade() -> None:
    op.create_table(
        "templates_custom",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("name", SORTED, nullable=False),
        sa.Column("public_name", sa.String(64), nullable=True, unique=True),
        sa.Column("category", sa.String(32), nullable=False),
        sa.Column("description", sa.Text, nullable=False, server_default=""),
        sa.Column("latest", sa.Integer, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("updated", sa.BigInteger, nullable=False),
        sa.Column("uses", sa.BigInteger, nullable=False, server_default="0"),
        sa.UniqueConstraint("owner", "name", name="templates_custom_owner_name"),
    )
    op.create_index("templates_custom_uses", "templates_custom", ["uses"])
    op.create_table(
        "templates_versions",
        template(),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "templates_aliases",
        template(),
        sa.Column("alias", sa.String(64), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
    )
    op.create_table(
        "templates_uses",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("uses", sa.BigInteger, nullable=False),
    )
