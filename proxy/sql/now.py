"""The database's clock, which is the same for all servers that share the database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class now(FunctionElement[int]):
    """SQL expression: microseconds since 1970, exact to the millisecond, of the statement and not its transaction."""

    type = BigInteger()
    inherit_cache = True


@compiles(now, "sqlite")
def _sqlite(*_: Any, **__: Any) -> str:
    return "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) * 1000"


@compiles(now, "postgresql")
def _postgresql(*_: Any, **__: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"
