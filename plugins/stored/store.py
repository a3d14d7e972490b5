"""Stored answers in the database.  Every query for a caller filters by owner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

import orjson
from sqlalchemy import ColumnElement, Update, delete, exists, func, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.stored.adding import Adding, labelled
from plugins.stored.answers import (
    COMPLETION,
    RESPONSE,
    RUNNING,
    Document,
    StoredAnswer,
    clean,
    labels_of,
    micros,
    octets,
    taken_apart,
    weight,
)
from plugins.stored.tables import ANSWERS, LABELS
from proxy.errors import BadCall, NotFound
from proxy.host import Host
from proxy.types import JSON

Result = TypeVar("Result")
MOST_TURNS: Final = 1000
MOST_BYTES: Final = 64 * 1024 * 1024
"""Limits of all responses that one response may continue."""
LIGHT: Final = tuple(ANSWERS.c[name] for name in ("id", "at", "kind", "status", "parent", "head", "output", "beat"))
"""The columns of a document."""
PATIENCE: Final = 5.0
"""Seconds that writes in progress may take at shutdown."""
CONTINUED: Final = "previous_response_id"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which of a caller's answers to list.  after: an id."""

    after: str | None = None
    limit: int = 20
    order: Literal["asc", "desc"] = "asc"
    model: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def mine(owner: str, kind: str, id: str) -> ColumnElement[bool]:
    return (ANSWERS.c.id == clean(id)) & (ANSWERS.c.owner == owner) & (ANSWERS.c.kind == kind)


class Store:
    def __init__(self, host: Host) -> None:
        self.host = host
        self.adding = Adding(host)
        self.writes: set[asyncio.Task[Any]] = set()
        """Writes in progress, except insertions, which `adding` has."""

    async def ready(self) -> None:
        """Check the database before an answer is generated that could not be stored.  Raises DatabaseAway."""
        await self.adding.ready()

    # --- written by calls ---

    async def add(self, owner: str, document: Document, input: str, at: float, **columns: Any) -> None:
        """input: JSON.  at: Unix seconds."""
        columns |= {**taken_apart(document), "input": input}
        row = {
            **columns, "id": document["id"], "at": micros(at), "owner": owner, "kind": document["object"],
            "model": clean(str(document["model"])), "parent": document.get(CONTINUED) or "", "bytes": weight(columns),
            "events": columns.get("events", ""), "beat": columns.get("beat"),
        }  # fmt: skip
        await self.adding.add(row, document.get("metadata") if row["kind"] == COMPLETION else None)

    async def add_queued(self, owner: str, document: Document, input: str, streams: bool) -> None:
        """Insert a background response."""
        now = self.host.clock.time()
        await self.add(owner, document, input, now, beat=micros(now), events="[]" if streams else "")

    async def began(self, id: str, head: Mapping[str, JSON]) -> bool:
        """Mark it as in progress; False if it was cancelled or deleted meanwhile."""
        return await self.change(id, {**head, "status": "in_progress"}, beat=micros(self.host.clock.time()))

    async def ended(self, id: str, document: Mapping[str, JSON], events: str = "") -> bool:
        """Store its end; False if it had ended before.  events: "" keeps the stored ones."""
        return await self.change(id, document, beat=None, **({"events": events} if events else {}))

    async def change(self, id: str, document: Mapping[str, JSON], **columns: Any) -> bool:
        columns |= taken_apart(document)
        running = (ANSWERS.c.id == id) & ANSWERS.c.status.in_(RUNNING)
        grown = ANSWERS.c.bytes + octets(columns["output"]) + octets(columns.get("events", ""))
        return await self.whole(self.update(update(ANSWERS).where(running).values(**columns, bytes=grown)))

    async def update(self, statement: Update) -> bool:
        async with self.host.database.writing() as connection:
            return bool((await connection.execute(statement)).rowcount)

    async def whole(self, writing: Coroutine[Any, Any, Result]) -> Result:
        """Complete a write even if the caller is cancelled."""
        task = self.host.background.start(writing, "keeping an answer")
        self.writes.add(task)
        task.add_done_callback(self.writes.discard)
        return await asyncio.shield(task)

    async def settled(self) -> None:
        """Wait for writes in progress, at most PATIENCE."""
        if under_way := self.writes | self.adding.tasks:
            await asyncio.wait(under_way, timeout=PATIENCE)

    async def beat(self, ids: Collection[str]) -> set[str]:
        """Renew the heartbeats of these responses; returns those that should still be running."""
        return await self.whole(self.touch(ids))

    async def touch(self, ids: Collection[str]) -> set[str]:
        running = ANSWERS.c.id.in_(ids) & ANSWERS.c.status.in_(RUNNING)
        async with self.host.database.writing() as connection:
            await connection.execute(update(ANSWERS).where(running).values(beat=micros(self.host.clock.time())))
            return set((await connection.execute(select(ANSWERS.c.id).where(running))).scalars())

    # --- requested by the owner ---

    async def get(self, owner: str, kind: str, id: str, *heavy: str, param: str = "id") -> StoredAnswer:
        """heavy: which of `input` and `events` to read, too.  param: the request field that contained the id.

        Raises NotFound, also for another owner's answer.
        """
        query = select(*LIGHT, *(ANSWERS.c[name] for name in heavy)).where(mine(owner, kind, id))
        async with self.host.database.reading() as connection:
            row = (await connection.execute(query)).mappings().first()
        if row is None:
            raise not_found(kind, id, param)
        return StoredAnswer.of({**row})

    async def delete(self, owner: str, kind: str, id: str) -> None:
        """Raises NotFound."""
        async with self.host.database.writing() as connection:
            gone = await connection.execute(delete(ANSWERS).where(mine(owner, kind, id)))
        if not gone.rowcount:
            raise not_found(kind, id)

    async def describe(self, owner: str, id: str, metadata: Mapping[str, str]) -> StoredAnswer:
        """Replace the metadata of a chat completion.  Raises NotFound."""
        async with self.host.database.writing() as connection:
            query = select(*LIGHT).where(mine(owner, COMPLETION, id)).with_for_update()
            row = (await connection.execute(query)).mappings().first()
            if row is None:
                raise not_found(COMPLETION, id)
            document = {**StoredAnswer.of({**row}).document, "metadata": dict(metadata)}
            await connection.execute(update(ANSWERS).where(ANSWERS.c.id == id).values(**taken_apart(document)))
            await connection.execute(delete(LABELS).where(LABELS.c.answer == id))
            if labels := labelled(id, metadata):
                await connection.execute(insert(LABELS), labels)
        return StoredAnswer.of({**row, **taken_apart(document)})

    async def page(self, owner: str, kind: str, wanted: Wanted) -> tuple[list[StoredAnswer], bool]:
        """One page, and whether there are more.  Raises NotFound if `after` is not an answer of the owner's."""
        query = select(*LIGHT).where(ANSWERS.c.owner == owner, ANSWERS.c.kind == kind)
        if wanted.model is not None:
            query = query.where(ANSWERS.c.model == clean(wanted.model))
        for name, value in labels_of(wanted.metadata):
            pair = (LABELS.c.answer == ANSWERS.c.id) & (LABELS.c.name == name) & (LABELS.c.value == value)
            query = query.where(exists().where(pair))
        at, id, rising = ANSWERS.c.at, ANSWERS.c.id, wanted.order == "asc"
        if wanted.after is not None:
            last = await self.get(owner, kind, wanted.after, param="after")
            beyond = at > last.at if rising else at < last.at
            query = query.where(beyond | ((at == last.at) & (id > last.id if rising else id < last.id)))
        query = query.order_by(at, id) if rising else query.order_by(at.desc(), id.desc())
        async with self.host.database.reading() as connection:
            rows = (await connection.execute(query.limit(wanted.limit + 1))).mappings().all()
        return [StoredAnswer.of({**row}) for row in rows[: wanted.limit]], len(rows) > wanted.limit

    async def behind(self, owner: str, id: str, newest: bool) -> AsyncIterator[Document]:
        """All items of a response and of those that it continues, the `newest` or the oldest first; one response is in
        memory at a time.  Deleted responses and other owners' are left out."""
        async with self.host.database.reading() as connection:
            ids = [row["id"] for row in await self.line(connection, owner, id)]
        for one in reversed(ids) if newest else ids:
            query = select(ANSWERS.c.input, ANSWERS.c.output).where(mine(owner, RESPONSE, one))
            async with self.host.database.reading() as connection:
                row = (await connection.execute(query)).first()
            items = [] if row is None else [item for part in row for item in orjson.loads(part)]
            for item in reversed(items) if newest else items:
                yield item

    async def items(self, owner: str, id: str) -> list[Document]:
        """All items of a response and of those that it continues, in order, including its own output.

        Raises BadCall if one of them is deleted or another owner's, or if the last is not complete.
        """
        async with self.host.database.reading() as connection:
            found = await self.line(connection, owner, id)
            check_line(id, found)
            ids = [row["id"] for row in found]
            query = select(ANSWERS).where(ANSWERS.c.id.in_(ids), ANSWERS.c.owner == owner)
            rows = {row["id"]: row for row in (await connection.execute(query)).mappings()}
            if gone := next((one for one in ids if one not in rows), None):  # deleted since the first query
                raise unknown_previous(gone)
        return [
            item for one in ids for kept in (StoredAnswer.of({**rows[one]}),) for item in (*kept.input, *kept.output)
        ]

    async def parts(self, owner: str, ids: Collection[str]) -> list[Document]:
        """All items of those of these responses that the owner has.  Raises BadCall if they have too many bytes."""
        which = ANSWERS.c.id.in_(ids) & (ANSWERS.c.owner == owner) & (ANSWERS.c.kind == RESPONSE)
        async with self.host.database.reading() as connection:
            size = (await connection.execute(select(func.sum(ANSWERS.c.bytes)).where(which))).scalar()
            if (size or 0) > MOST_BYTES:
                message = f"Invalid 'input': it refers to items of responses with more than {MOST_BYTES} bytes."
                raise BadCall(message, param="input", code="input_too_large")
            rows = (await connection.execute(select(ANSWERS.c.input, ANSWERS.c.output).where(which))).all()
        return [item for row in rows for part in row for item in orjson.loads(part)]

    async def line(self, connection: AsyncConnection, owner: str, id: str) -> list[dict[str, Any]]:
        """A response and its predecessors, the oldest first, without their documents."""
        columns = (ANSWERS.c.id, ANSWERS.c.parent, ANSWERS.c.status, ANSWERS.c.bytes)
        first = select(*columns, literal(0).label("turn")).where(mine(owner, RESPONSE, id))
        line = first.cte("line", recursive=True)
        above = select(*columns, (line.c.turn + 1).label("turn")).where(
            ANSWERS.c.id == line.c.parent,
            ANSWERS.c.owner == owner,
            ANSWERS.c.kind == RESPONSE,
            line.c.turn < MOST_TURNS,
        )
        line = line.union_all(above)
        rows = (await connection.execute(select(line).order_by(line.c.turn.desc()))).mappings()
        return [dict(row) for row in rows]


def check_line(id: str, found: Sequence[dict[str, Any]]) -> None:
    if not found:
        raise unknown_previous(id)
    if found[-1]["status"] in RUNNING:
        message = f"The response '{id[:100]}' is not complete yet, and cannot be continued."
        raise BadCall(message, param=CONTINUED, code="response_not_complete")
    if len(found) > MOST_TURNS or sum(row["bytes"] for row in found) > MOST_BYTES:
        message = f"The response '{id[:100]}' continues too many others: more than {MOST_TURNS}, or {MOST_BYTES} bytes."
        raise BadCall(message, param=CONTINUED, code="previous_response_too_long")
    if found[0]["parent"]:
        raise unknown_previous(found[0]["parent"])


def unknown_previous(id: str) -> BadCall:
    """A 400 and not a 404, as with OpenAI: the URL itself exists."""
    message = f"Previous response with id '{id[:100]}' not found."
    return BadCall(message, param=CONTINUED, code="previous_response_not_found")


def not_found(kind: str, id: str, param: str = "id") -> NotFound:
    noun = "Response" if kind == RESPONSE else "Chat completion"
    return NotFound(f"{noun} with id '{id[:100]}' not found.", param=param, code="not_found")
