"""Turns of those who count first and then add, so that two of them do not both find room for the last one."""

from __future__ import annotations

import zlib

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


async def turn(connection: AsyncConnection, name: str) -> None:
    """Until the transaction ends nobody else has a turn of this name; SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        lock = zlib.crc32(f"gemmapy-proxy turn {name}".encode(errors="replace"))
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})
