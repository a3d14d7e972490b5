"""Files in the database, their bytes in pieces.  Every query for a caller filters by owner."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from sqlalchemy import ColumnElement, delete, func, insert, select, update

from plugins.files.tables import FILES, PIECES
from proxy.errors import BadCall, NotFound, TooLarge
from proxy.file_access import FileAccess, FileInfo
from proxy.host import Clock
from proxy.sql.database import Database
from proxy.sql.transaction_lock import transaction_lock
from proxy.wire.ids import new_id

PIECE: Final = 1024 * 1024
"""Bytes per row."""
SOME: Final = 16
"""Rows of bytes deleted at once."""
ASKED: Final = 500
"""Maximum ids in one query."""


class File(NamedTuple):
    """A row of FILES."""

    id: str
    owner: str
    name: str
    purpose: str
    status: str
    bytes: int
    pieces: int
    at: int
    changed: int
    expires: int | None


@dataclass(frozen=True, slots=True)
class Bounds:
    """file: maximum bytes of one file.  bytes, files: maximum of one caller."""

    file: int
    bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which of a caller's files to list.  after: an id."""

    after: str | None = None
    limit: int = 10_000
    order: Literal["asc", "desc"] = "desc"
    purpose: str | None = None


class Store:
    def __init__(self, database: Database, clock: Clock, bounds: Bounds, file_access: FileAccess) -> None:
        self.database = database
        self.clock = clock
        self.bounds = bounds
        self.file_access = file_access

    def now(self) -> int:
        return int(self.clock.time() * 1e6)

    # --- writing ---

    async def begin(self, owner: str, name: str, id: str = "") -> str:
        """The id of a new, empty file, which is invisible until `finish`.  Raises BadCall if there are too many."""
        now, id = self.now(), id or new_id("file-")
        async with self.database.writing() as connection:
            await transaction_lock(connection, f"files of {owner}")
            count = select(func.count()).where((FILES.c.owner == owner) & (FILES.c.status != "gone"))
            if (await connection.execute(count)).scalar_one() >= self.bounds.files:
                message = f"You have {self.bounds.files} files, which is the maximum; delete some."
                raise BadCall(message, param="file", code="too_many_files")
            row = {"id": id, "owner": owner, "name": name, "status": "receiving", "at": now, "changed": now}
            await connection.execute(insert(FILES).values(row))
        return id

    async def put(self, owner: str, id: str, number: int, piece: bytes) -> None:
        """Append the next piece.  Raises TooLarge if all of the owner's files together would have too many bytes,
        and NotFound if it was deleted meanwhile."""
        async with self.database.writing() as connection:
            await transaction_lock(connection, f"files of {owner}")
            own = (FILES.c.owner == owner) & (FILES.c.status != "gone")
            sizes = select(func.coalesce(func.sum(FILES.c.bytes), 0)).where(own)
            room = self.bounds.bytes - int((await connection.execute(sizes)).scalar_one())
            if len(piece) > room:
                message = f"Your files may have {self.bounds.bytes} bytes together, which this one would exceed."
                raise TooLarge(message, param="file", code="storage_full")
            grown = {"bytes": FILES.c.bytes + len(piece), "pieces": number + 1, "changed": self.now()}
            arriving = own & (FILES.c.id == id) & (FILES.c.status == "receiving")
            if (await connection.execute(update(FILES).where(arriving).values(**grown))).rowcount != 1:
                raise not_found(id)
            await connection.execute(insert(PIECES).values(file=id, number=number, content=piece))

    async def finish(self, owner: str, id: str, purpose: str, seconds: int | None) -> File:
        """Make the file visible.  seconds: after which it expires; None is never.

        Raises NotFound if it was deleted meanwhile.
        """
        at = self.now()
        expires = None if seconds is None else at + seconds * 1_000_000
        told = {"status": "whole", "purpose": purpose, "at": at, "changed": at, "expires": expires}
        mine = (FILES.c.id == id) & (FILES.c.owner == owner)
        async with self.database.writing(lasting=True) as connection:
            whole = update(FILES).where(mine & (FILES.c.status == "receiving")).values(**told)
            row = (await connection.execute(whole.returning(*FILES.c))).first()
        if row is None:
            raise not_found(id)
        return File(*row)

    async def add(self, caller: str, name: str, purpose: str, pieces: AsyncIterator[bytes], id: str = "") -> FileInfo:
        """Store a file; if this breaks off, what was stored is deleted like an abandoned upload."""
        if id:
            if there := (await self.find(caller, [id])).get(id):
                return there
            await self.drop(id)  # the rest of an earlier attempt
        id, number = await self.begin(caller, name, id), 0
        try:
            async for piece in pieces:
                await self.put(caller, id, number, piece)
                number += 1
        except BadCall:
            await self.drop(id)
            raise
        file = await self.finish(caller, id, purpose, None)
        return FileInfo(file.id, file.name, file.purpose, file.bytes)

    # --- reading ---

    def mine(self, owner: str) -> ColumnElement[bool]:
        """Files that an owner can see: complete and not expired, even if expired ones are not deleted yet."""
        fresh = FILES.c.expires.is_(None) | (FILES.c.expires > self.now())
        return (FILES.c.owner == owner) & (FILES.c.status == "whole") & fresh

    async def one(self, owner: str, id: str, param: str = "file_id") -> File:
        """Raises NotFound, also for another owner's file."""
        async with self.database.reading() as connection:
            row = (await connection.execute(select(FILES).where(self.mine(owner) & (FILES.c.id == id)))).first()
        if row is None:
            raise not_found(id, param)
        return File(*row)

    async def page(self, owner: str, wanted: Wanted) -> tuple[list[File], bool]:
        """One page, and whether there are more.  Raises NotFound if `after` is not a file of the owner's."""
        last = None if wanted.after is None else await self.one(owner, wanted.after, "after")
        return await self.beyond(owner, wanted, last)

    async def beyond(self, owner: str, wanted: Wanted, last: File | None) -> tuple[list[File], bool]:
        """Like `page`, after a file that may have been deleted meanwhile."""
        query = select(FILES).where(self.mine(owner))
        if wanted.purpose is not None:
            query = query.where(FILES.c.purpose == wanted.purpose)
        at, id, rising = FILES.c.at, FILES.c.id, wanted.order == "asc"
        if last is not None:
            beyond = at > last.at if rising else at < last.at
            query = query.where(beyond | ((at == last.at) & (id > last.id if rising else id < last.id)))
        query = query.order_by(at, id) if rising else query.order_by(at.desc(), id.desc())
        async with self.database.reading() as connection:
            rows = (await connection.execute(query.limit(wanted.limit + 1))).all()
        return [File(*row) for row in rows[: wanted.limit]], len(rows) > wanted.limit

    async def find(self, caller: str, ids: Collection[str]) -> Mapping[str, FileInfo]:
        several, there = list(ids), dict[str, FileInfo]()
        columns = (FILES.c.id, FILES.c.name, FILES.c.purpose, FILES.c.bytes, FILES.c.expires)
        async with self.database.reading() as connection:
            for at in range(0, len(several), ASKED):
                some = self.mine(caller) & FILES.c.id.in_(several[at : at + ASKED])
                for row in await connection.execute(select(*columns).where(some)):
                    there[row.id] = FileInfo(*row)
        return there

    async def pieces(self, caller: str, id: str) -> AsyncIterator[bytes]:
        file = await self.one(caller, id)
        for number in range(file.pieces):
            async with self.database.reading() as connection:
                query = select(PIECES.c.content).where((PIECES.c.file == file.id) & (PIECES.c.number == number))
                piece = (await connection.execute(query)).scalar_one_or_none()
            if piece is None:  # it was deleted meanwhile
                raise not_found(id)
            yield piece

    # --- deleting ---

    async def remove(self, file: File) -> None:
        """Delete a file and everything derived from it, also what other features derived during the deletion."""
        await self.unmade(file)
        await self.drop(file.id)
        await self.unmade(file)

    async def discard(self, caller: str, id: str) -> None:
        with suppress(NotFound):
            await self.remove(await self.one(caller, id))

    async def unmade(self, file: File) -> None:
        for hook in self.file_access.removal_hooks:
            await hook(file.owner, file.id)

    async def drop(self, id: str) -> None:
        """Hide a file at once, then delete its bytes in small transactions; after a crash `tidy` deletes the rest."""
        async with self.database.writing(lasting=True) as connection:
            gone = update(FILES).where(FILES.c.id == id)
            await connection.execute(gone.values(status="gone", changed=self.now()))
        some = select(PIECES.c.number).where(PIECES.c.file == id).limit(SOME).scalar_subquery()
        while True:
            async with self.database.writing() as connection:
                which = (PIECES.c.file == id) & PIECES.c.number.in_(some)
                if not (await connection.execute(delete(PIECES).where(which))).rowcount:
                    await connection.execute(delete(FILES).where(FILES.c.id == id))
                    return

    async def all(self, where: ColumnElement[bool], limit: int) -> Sequence[File]:
        """Files of all owners, for the server's own work."""
        async with self.database.reading() as connection:
            rows = await connection.execute(select(FILES).where(where).order_by(FILES.c.changed).limit(limit))
            return [File(*row) for row in rows]


def not_found(id: str, param: str = "file_id") -> NotFound:
    return NotFound(f"No file of yours has the id '{id[:100]}'.", param=param, code="file_not_found")
