"""How a feature declares its tables, without importing SQLAlchemy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Feature:
    """A group of tables and their migrations.

    name: the prefix of the tables' names.
    migrations: the folder of Alembic revisions, which are run when a server with this feature starts.
    """

    name: str
    migrations: Path
