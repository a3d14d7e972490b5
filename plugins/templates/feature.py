"""The feature's tables, for code that must not import SQLAlchemy yet."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from proxy.sql.feature import Feature

FEATURE: Final = Feature("templates", Path(__file__).parent / "migrations")
