"""The history of a feature's tables, through Alembic."""

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

logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of each of its own plugins
LOCK: Final = zlib.crc32(b"gemmapy-proxy migrations")


def upgrade(connection: Connection, feature: Feature) -> None:
    """To the newest revision, in the connection's transaction.

    Each feature has a table of its own that says how far it has come, so that features neither know nor wait for
    each other.  Raises ConfigError where a newer version of the server has been.
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
        return history._upgrade_revs("head", at)  # as Alembic's manual has it, for want of a public name

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
    """Whether nothing is to be done."""
    return reached(connection, feature) == revisions(feature.migrations).get_current_head()


@cache
def revisions(folder: Path) -> ScriptDirectory:
    """Read once a process: a server that is started again, or asks another database, need not."""
    return ScriptDirectory(str(folder), version_locations=[str(folder)])


def reached(connection: Connection, feature: Feature) -> str | None:
    """The revision that the tables are at; None where there are none yet."""
    context = MigrationContext.configure(connection, opts={"version_table": version_table(feature)})
    return context.get_current_revision()


def version_table(feature: Feature) -> str:
    return f"{feature.name}_version"
