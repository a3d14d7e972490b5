"""Statistics of past attempts, from their rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy import case, func, select

from plugins.usage.tables import ATTEMPTS
from plugins.usage.writer import Writer
from proxy.announcements import BROKEN_OFF, AttemptsAsked
from proxy.host import Host
from proxy.types import JSON

A = ATTEMPTS.c
AGAIN = case((A.number > 1, 1), else_=0)
FELL = case((A.number == 0, 1), else_=0)


class Attempts:
    """Covers all processes of the server, for as long as rows are kept."""

    def __init__(self, writer: Writer, host: Host) -> None:
        self.writer = writer
        self.host = host

    def asked(self, event: AttemptsAsked) -> None:
        event.answers.append(partial(self.statistics, event.hours))

    async def statistics(self, hours: float) -> dict[str, JSON]:
        """Raises Busy while the database is unavailable."""
        await self.writer.flush()
        since = int((self.host.clock.time() - hours * 3600) * 1e6)
        kinds = (A.model, A.upstream, A.error, AGAIN.label("again"), FELL.label("fell"))
        query = select(*kinds, func.sum(A.times).label("times")).where(A.at >= since)
        async with self.host.database.reading() as connection:
            found = await connection.execute(query.group_by(A.model, A.upstream, A.error, AGAIN, FELL))
            rows: Sequence[Any] = found.all()
        pairs: dict[tuple[str, str], list[Any]] = {}
        for row in rows:
            pairs.setdefault((row.model, row.upstream), []).append(row)
        by = [
            {"model": model, "upstream": upstream or None, **figures(some)}
            for (model, upstream), some in sorted(pairs.items())
        ]
        return {"hours": hours, **figures(rows), "by_model": by}


def figures(rows: Sequence[Any]) -> dict[str, JSON]:
    """The fields of `/api/retry/stats`."""
    tries = [row for row in rows if not row.fell]
    attempts, broken = total(tries), total([row for row in tries if row.error in BROKEN_OFF])
    failed = [row for row in tries if row.error and row.error not in BROKEN_OFF]
    failures, ended = total(failed), attempts - broken
    errors: dict[str, int] = {}
    for row in failed:
        errors[row.error] = errors.get(row.error, 0) + number(row)
    return {
        "attempts": attempts,
        "failures": failures,
        "broken_off": broken,
        "failure_rate": round(failures / ended, 4) if ended else None,
        "retries": total([row for row in tries if row.again]),
        "successes_after_retry": total([row for row in tries if row.again and not row.error]),
        "fallbacks": total([row for row in rows if row.fell]),
        "errors": errors,
    }


def total(rows: Sequence[Any]) -> int:
    return sum(map(number, rows))


def number(row: Any) -> int:
    return int(row.times)
