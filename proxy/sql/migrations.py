"""Migrations of a feature's tables, by Alembic."""

from __future__ import annotations

import logging
import zlib
from functools import cache
from pathlib import Path
from typing import Any, Final

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from proxy.errors import ConfigError
from proxy.sql.feature import Feature

logging.getLogger("alembic").setLevel(logging.WARNING)  # else it logs each of its own plugins
LOCK: Final = zlib.crc32(b"gemmapy-proxy migrations")


def upgrade(connection: Connection, feature: Feature) -> None:
    """Upgrade the tables to the newest revision, in the connection's transaction.

    Each feature has its own version table, so that features are independent of each other.  Raises ConfigError if a
    newer version of the server has already upgraded the tables.
    """
    if connection.dialect.name == "postgresql":  # SQLite has locked the whole file already
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    if is_newest(connection, feature):
        return
    history = revisions(feature.migrations)
    if reached(connection, feature) not in {None, *(one.revision for one in history.walk_revisions())}:
        why = (
            f"the database's tables of `{feature.name}` were made by a newer version of gemmapy-proxy: run that version"
        )
        raise ConfigError([f"{why}, or restore a backup"])

    def missing(at: Any, _: MigrationContext) -> Any:
        return history._upgrade_revs("head", at)  # as in Alembic's manual; there is no public name for it

    with EnvironmentContext(Config(), history, fn=missing) as environment:
        environment.configure(
            connection=connection,
            version_table=version_table(feature),
            transactional_ddl=True,
            render_as_batch=True,
        )
        with environment.begin_transaction():
            environment.run_migrations()


def is_newest(connection: Connection, feature: Feature) -> bool:
    """Whether the tables are at the newest revision."""
    return reached(connection, feature) == revisions(feature.migrations).get_current_head()


@cache
def revisions(folder: Path) -> ScriptDirectory:
    """The revisions in a folder, read only once per process."""
    return ScriptDirectory(str(folder), version_locations=[str(folder)])


def reached(connection: Connection, feature: Feature) -> str | None:
    """The revision of the tables; None if there are none yet."""
    context = MigrationContext.configure(connection, opts={"version_table": version_table(feature)})
    return context.get_current_revision()


def version_table(feature: Feature) -> str:
    return f"{feature.name}_version"
