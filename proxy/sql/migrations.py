"""The history of a feature's tables, through Alembic."""

from __future__ import annotations

import logging
import zlib
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from proxy.sql.feature import Feature

ENVIRONMENT: Final = Path(__file__).parent / "alembic"
logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of each of its own plugins
LOCK: Final = zlib.crc32(b"gemmapy-proxy migrations")


def upgrade(connection: Connection, feature: Feature) -> None:
    """To the newest revision, in the connection's transaction.

    Each feature has a table of its own that says how far it has come, so that features neither know nor wait for
    each other.
    """
    if connection.dialect.name == "postgresql":  # SQLite has locked the whole file already
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    if not is_newest(connection, feature):
        config = configured(feature)
        config.attributes |= {"connection": connection, "version_table": version_table(feature)}
        command.upgrade(config, "head")


def is_newest(connection: Connection, feature: Feature) -> bool:
    """Whether nothing is to be done."""
    return reached(connection, feature) == ScriptDirectory.from_config(configured(feature)).get_current_head()


def configured(feature: Feature) -> Config:
    config = Config()
    config.set_main_option("script_location", str(ENVIRONMENT))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", str(feature.migrations).replace("%", "%%"))
    return config


def reached(connection: Connection, feature: Feature) -> str | None:
    """The revision that the tables are at; None where there are none yet."""
    context = MigrationContext.configure(connection, opts={"version_table": version_table(feature)})
    return context.get_current_revision()


def version_table(feature: Feature) -> str:
    return f"{feature.name}_version"
