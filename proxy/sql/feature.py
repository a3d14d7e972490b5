"""What a feature says of its tables, without SQLAlchemy being imported for those that need none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Feature:
    """Tables that belong together, and their history.

    name: stands before the names of its tables.
    migrations: the folder of its Alembic revisions; they run when a server starts that uses the feature.
    """

    name: str
    migrations: Path
