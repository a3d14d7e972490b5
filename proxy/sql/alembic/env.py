"""Run by Alembic around the revisions of one feature."""

from __future__ import annotations

from alembic import context

told = context.config.attributes
context.configure(
    connection=told["connection"],
    version_table=told["version_table"],
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
