"""The secret that keys are hashed with: from the settings or the database, where a mark shows if it changes."""

from __future__ import annotations

import secrets
import zlib
from typing import Final

from sqlalchemy import ColumnElement, delete, func, insert, or_, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.accounts.keys import mark_of
from proxy.accounts.tables import KEYS, SECRETS
from proxy.errors import ProxyError

LOCK: Final = zlib.crc32(b"gemmapy-proxy accounts")
KEPT, MARK = "keys", "mark"
"""Names of rows: the secret, and the mark of the secret that is in use."""


class OtherSecret(ProxyError):
    """The existing keys were made with another secret, so they would not work with this one."""

    def __init__(self, working: int) -> None:
        super().__init__(
            "`accounts.secret` is not the one that the database's keys were made with, which would open nothing "
            f"(still working: {working}). Give the former secret, as the server has it. To begin with another one, "
            "first end all keys: `gemmapy-proxy keys revoke --all`",
            code="other_secret",
        )


async def locked(connection: AsyncConnection) -> None:
    """Let one process at a time go on, until its transaction ends; with SQLite, every writer already has this lock."""
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})


async def value_of(connection: AsyncConnection, name: str) -> str | None:
    found: str | None = (await connection.execute(select(SECRETS.c.value).where(SECRETS.c.name == name))).scalar()
    return found


async def own_secret(connection: AsyncConnection) -> bytes:
    """The secret in the database, created on first use."""
    await locked(connection)
    value = await value_of(connection, KEPT)
    if value is None:
        value = secrets.token_hex(32)
        await connection.execute(insert(SECRETS).values(name=KEPT, value=value))
    return bytes.fromhex(value)


async def agreed(connection: AsyncConnection, secret: bytes) -> bool:
    """Whether the database's mark shows that keys are made with this secret."""
    return await value_of(connection, MARK) == mark_of(secret)


async def agree(connection: AsyncConnection, secret: bytes, now: int, serving: bool) -> None:
    """Make sure that all working keys were made with this secret, and mark it as theirs.  Raises OtherSecret.

    If no key works, any secret is accepted.  If keys work but there is no mark, they are taken to be made with the
    secret of the first server.  serving: whether a server asks, and not a command.  The connection must be `locked`.
    """
    if await agreed(connection, secret):
        return
    working = await connection.execute(select(func.count()).select_from(KEYS).where(works(now)))
    if count := working.scalar_one():
        if await value_of(connection, MARK) is not None:
            raise OtherSecret(count)
        if not serving:
            return
    await connection.execute(delete(SECRETS).where(SECRETS.c.name == MARK))
    await connection.execute(insert(SECRETS).values(name=MARK, value=mark_of(secret)))


def works(now: int) -> ColumnElement[bool]:
    """SQL condition: a key was not revoked and has not expired.  now: microseconds since 1970."""
    return KEYS.c.revoked.is_(None) & or_(KEYS.c.expires.is_(None), KEYS.c.expires > now)
