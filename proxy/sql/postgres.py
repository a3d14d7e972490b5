"""PostgreSQL's connections, and which of its errors are temporary."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final
from weakref import WeakSet

from sqlalchemy import exc
from sqlalchemy.engine import ExceptionContext

NO_WRITES: Final = "25006"
AWAY: Final = ("08", NO_WRITES, "25P03", "25P04", "40", "53", "55P03", "57")
"""Prefixes of the SQLSTATEs of temporary errors: connections, a standby that does not accept writes yet, transactions
that took too long or conflict, resources, a lock or a statement that took too long, starting and stopping."""
STATEMENT: Final = 30.0
"""Seconds that one statement may take in PostgreSQL."""
GOODBYE: Final = 0.5
"""Seconds that a connection may take to close gracefully."""


def passes(error: exc.DBAPIError) -> bool:
    """Whether the error is temporary, such as PostgreSQL starting, stopping or being overloaded."""
    return str(getattr(error.orig, "sqlstate", None) or "").startswith(AWAY)


def leave(told: ExceptionContext) -> None:
    """Drop a connection that turns out to be read-only: a session keeps the `default_transaction_read_only` with which
    it began, so only a new one can write once the server accepts writes."""
    if getattr(getattr(told.original_exception, "orig", told.original_exception), "sqlstate", None) == NO_WRITES:
        told.is_disconnect = True


def noting(made: WeakSet[Any]) -> type:
    """A class of connections to PostgreSQL that add themselves to `made` when they are created.

    Otherwise a connection is lost if the task that waits for it is cancelled at the moment when it is ready.
    """
    import asyncpg

    class Noted(asyncpg.Connection):  # type: ignore[misc]  # it has no types
        __slots__ = ()

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            made.add(self)

        async def close(self, **_: Any) -> None:
            """Close the connection, with a shorter timeout than SQLAlchemy's, because somebody waits for this."""
            with suppress(TimeoutError):
                await super().close(timeout=GOODBYE)

    return Noted
