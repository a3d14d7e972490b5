"""The secret that keys are hashed with: in the database where nobody gives one, and known again by a mark there."""

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
"""Names of rows."""


class OtherSecret(ProxyError):
    """Of keys made with this secret and those that are there, only one kind would open anything."""

    def __init__(self, working: int) -> None:
        super().__init__(
            "`accounts.secret` is not the one that the database's keys were made with, which would open nothing "
            f"(still working: {working}). Give the former secret, as the server has it. To begin with another one, "
            "first end all keys: `gemmapy-proxy keys revoke --all`",
            code="other_secret",
        )


async def locked(connection: AsyncConnection) -> None:
    """Of several processes that start at once the others wait here; in SQLite they do already."""
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})


async def value_of(connection: AsyncConnection, name: str) -> str | None:
    found: str | None = (await connection.execute(select(SECRETS.c.value).where(SECRETS.c.name == name))).scalar()
    return found


async def own_secret(connection: AsyncConnection) -> bytes:
    """The one that the database keeps, made by whoever asks first."""
    await locked(connection)
    value = await value_of(connection, KEPT)
    if value is None:
        value = secrets.token_hex(32)
        await connection.execute(insert(SECRETS).values(name=KEPT, value=value))
    return bytes.fromhex(value)


async def agreed(connection: AsyncConnection, secret: bytes) -> bool:
    """Whether it is known to be the one that keys are made with."""
    return await value_of(connection, MARK) == mark_of(secret)


async def agree(connection: AsyncConnection, secret: bytes, now: int, serving: bool) -> None:
    """All keys that work were made with this secret.  Raises OtherSecret.

    It is the first key's, or that of the first server, which keys without a mark are believed to be of; once no key
    works any more it may be another one.  serving: whether it is a server's.  The connection is `locked`.
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
    """Of a key: it has not ended."""
    return KEYS.c.revoked.is_(None) & or_(KEYS.c.expires.is_(None), KEYS.c.expires > now)
