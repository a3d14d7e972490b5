"""Punctuation is removed before PostgreSQL parses a text: repeated `<!--`, for example, would take it hours."""

from alembic import op

revision, down_revision = "two", "one"

SIGNS = "!\"#$%&''()*+,-./:;<=>?@[\\]^_`{|}~"


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    op.execute("ALTER TABLE conversations_messages DROP COLUMN words")
    op.execute(
        "ALTER TABLE conversations_messages ADD COLUMN words tsvector GENERATED ALWAYS AS "
        f"(to_tsvector('simple', translate(left(text, 200000), '{SIGNS}', repeat(' ', 32)))) STORED"
    )
    op.execute("CREATE INDEX conversations_words ON conversations_messages USING gin (words)")
