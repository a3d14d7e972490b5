"""What PostgreSQL's connections are, and what it says of its state."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final
from weakref import WeakSet

from sqlalchemy import exc
from sqlalchemy.engine import ExceptionContext

NO_WRITES: Final = "25006"
AWAY: Final = ("08", NO_WRITES, "25P03", "25P04", "40", "53", "55P03", "57")
"""How the SQLSTATE of what passes begins: connections, a standby that takes no writes yet, transactions that took too
long or are in each other's way, resources, a lock or a statement that took too long, starting and stopping."""
STATEMENT: Final = 30.0
"""Seconds that one statement may take at PostgreSQL."""
GOODBYE: Final = 0.5
"""Seconds that PostgreSQL has to end a connection well."""


def passes(error: exc.DBAPIError) -> bool:
    """Whether PostgreSQL says that it starts, stops or is full, for which SQLAlchemy has no class of its own."""
    return str(getattr(error.orig, "sqlstate", None) or "").startswith(AWAY)


def leave(told: ExceptionContext) -> None:
    """A session keeps the `default_transaction_read_only` that it began with: only a new one learns of another."""
    if getattr(getattr(told.original_exception, "orig", told.original_exception), "sqlstate", None) == NO_WRITES:
        told.is_disconnect = True


def noting(made: WeakSet[Any]) -> type:
    """The class of connections to PostgreSQL that are known from the first moment.

    Whoever waits for one may be cut off just when it is there, and then nobody has it.
    """
    import asyncpg

    class Noted(asyncpg.Connection):  # type: ignore[misc]  # it has no types
        __slots__ = ()

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            made.add(self)

        async def close(self, **_: Any) -> None:
            """One that answers nothing is cut off, sooner than SQLAlchemy would: somebody waits for that."""
            with suppress(TimeoutError):
                await super().close(timeout=GOODBYE)

    return Noted
