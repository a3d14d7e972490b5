"""A lock for transactions that count rows and then add one, so that two of them cannot both take the last place."""

from __future__ import annotations

import zlib

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


async def transaction_lock(connection: AsyncConnection, name: str) -> None:
    """Hold the lock of this name until the transaction ends; SQLite has only one writer anyway."""
    if connection.dialect.name == "postgresql":
        lock = zlib.crc32(f"gemmapy-proxy turn {name}".encode(errors="replace"))
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})
