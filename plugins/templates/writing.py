"""Changes to callers' own templates: versions are added and aliases moved; existing versions never change."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import orjson
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.templates.document import LATEST, PREFIX, Document, content_of
from plugins.templates.store import Found, Store, aliases_of, called, can_be, found_of, missing
from plugins.templates.tables import ALIASES, CUSTOM, VERSIONS
from proxy.errors import BadCall
from proxy.types import JSON, Caller
from proxy.wire.ids import new_id

T, V, A = CUSTOM.c, VERSIONS.c, ALIASES.c
MOST_ALIASES: Final = 20


@dataclass(frozen=True, slots=True)
class Change:
    """A change; None and aliases that are not named mean no change.

    aliases: alias -> version; 0 is the newest, None deletes the alias.
    """

    document: Document | None = None
    public: bool | None = None
    aliases: Mapping[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limits:
    """Maximum templates of one caller, and versions of one template."""

    templates: int
    versions: int


class Writing:
    """Owners may change their templates; admins may delete public ones."""

    def __init__(self, store: Store, limits: Limits, taken: frozenset[str]) -> None:
        """taken: the library's names."""
        self.store = store
        self.limits = limits
        self.taken = taken

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Clears cached lookups afterwards."""
        async with self.store.database.writing() as connection:
            yield connection
        self.store.recent.clear()

    async def create(self, caller: str, change: Change) -> dict[str, JSON]:
        """Raises BadCall if the name is taken, or if the caller has too many."""
        try:
            async with self.transaction() as connection:
                return await self.created(connection, caller, change)
        except IntegrityError:
            raise taken(change.document.name if change.document else "") from None

    async def created(self, connection: AsyncConnection, caller: str, change: Change) -> dict[str, JSON]:
        document = change.document
        assert document is not None  # noqa: S101  (a new template has one)
        if document.name in self.taken:
            raise taken(document.name)
        await alone(connection, caller)
        count = select(func.count()).select_from(CUSTOM).where(T.owner == caller)
        if (await connection.execute(count)).scalar_one() >= self.limits.templates:
            message = f"You have {self.limits.templates} templates, which is the maximum; delete one first."
            raise BadCall(message, code="too_many_templates")
        id, now = new_id(PREFIX), self.store.now()
        row = {
            "id": id,
            "owner": caller,
            "name": document.name,
            "public_name": document.name if change.public else None,
            "category": document.category,
            "description": document.description.replace("\0", ""),
            "latest": 0,
            "created": now,
            "updated": now,
            "uses": 0,
        }
        await connection.execute(insert(CUSTOM).values(row))
        found = Found(id, caller, document.name, bool(change.public), 0)
        return await self.changed(connection, found, change)

    async def change(self, caller: str, id: str, change: Change) -> dict[str, JSON]:
        """Raises NotFound, and BadCall for a different name or too many versions."""
        try:
            async with self.transaction() as connection:
                found = await mine(connection, id, caller)
                return await self.changed(connection, found, change)
        except IntegrityError:
            raise BadCall("There is a public template of this name.", param="public", code="name_taken") from None

    async def changed(self, connection: AsyncConnection, found: Found, change: Change) -> dict[str, JSON]:
        latest = found.latest
        if change.document is not None:
            latest = await self.versioned(connection, found, change.document)
        if change.public is not None:
            name = found.name if change.public else None
            await connection.execute(update(CUSTOM).where(T.id == found.id).values(public_name=name))
        await moved(connection, found.id, change.aliases, latest)
        aliases = await aliases_of(connection, found.id)
        if len(aliases) > MOST_ALIASES:
            raise BadCall(f"A template has at most {MOST_ALIASES} aliases.", param="aliases", code="too_many_aliases")
        public = found.public if change.public is None else change.public
        told = {"id": found.id, "name": found.name, "version": latest, "public": public}
        return {**told, "aliases": {**aliases, LATEST: latest}}

    async def versioned(self, connection: AsyncConnection, found: Found, document: Document) -> int:
        """The number of the newest version, which is a new one unless the content is the same as that of the last."""
        if document.name != found.name:
            raise BadCall(
                f"A template cannot be renamed: this one is called '{found.name}'.", param="name", code="invalid_value"
            )
        number = found.latest + 1
        told = document.model_copy(update={"version": number, "aliases": ()}).as_json()
        query = select(V.document).where(V.template == found.id, V.version == found.latest)
        last = (await connection.execute(query)).scalar()
        if last is not None and content_of(orjson.loads(last)) == content_of(told):
            return found.latest
        if number > self.limits.versions:
            message = f"A template has at most {self.limits.versions} versions; begin another one."
            raise BadCall(message, code="too_many_versions")
        now = self.store.now()
        row = {"template": found.id, "version": number, "document": orjson.dumps(told).decode(), "created": now}
        await connection.execute(insert(VERSIONS).values(row))
        new = {
            "latest": number,
            "updated": now,
            "category": document.category,
            "description": document.description.replace("\0", ""),
        }
        await connection.execute(update(CUSTOM).where(T.id == found.id).values(new))
        return number

    async def remove(self, caller: Caller, id: str) -> None:
        """Delete a template with all its versions.  id: or the name of one of the caller's own.  Raises NotFound."""
        whose = T.owner == caller.name
        if caller.is_admin and id.startswith(PREFIX):
            whose |= T.public_name.is_not(None)
        if not can_be(id):
            raise missing(id)
        async with self.transaction() as connection:
            gone = await connection.execute(delete(CUSTOM).where(called(id), whose))
        if not gone.rowcount:
            raise missing(id)

    async def clear(self, caller: str) -> int:
        """Delete all templates of a caller; returns how many there were."""
        async with self.transaction() as connection:
            return int((await connection.execute(delete(CUSTOM).where(T.owner == caller))).rowcount)

    async def take_in(self, caller: str, documents: Sequence[Document], public: bool) -> list[dict[str, JSON]]:
        """Import each as a new version of the caller's template of that name, created if necessary; all or none.

        Versions are numbered anew, in the order of their numbers.  Raises BadCall.
        """
        made = []
        try:
            async with self.transaction() as connection:
                await alone(connection, caller)  # before any row is locked, otherwise two imports could deadlock
                for document in sorted(documents, key=lambda one: (one.name, one.version)):
                    change = Change(document, public or None, dict.fromkeys(document.aliases, 0))
                    query = select(CUSTOM).where(T.owner == caller, T.name == document.name).with_for_update()
                    row = (await connection.execute(query)).mappings().first()
                    if row is None:
                        told = await self.created(connection, caller, change)
                    else:
                        told = await self.changed(connection, found_of(row), change)
                    made.append({**told, "created": row is None})
        except IntegrityError:
            raise taken("") from None
        return made


async def alone(connection: AsyncConnection, caller: str) -> None:
    """Lock out others who create templates of this caller until the transaction ends, so that the count is right.
    SQLite has only one writer anyway."""
    if connection.dialect.name == "postgresql":
        lock = zlib.crc32(f"gemmapy-proxy templates {caller}".encode(errors="replace"))
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})


async def mine(connection: AsyncConnection, id: str, caller: str) -> Found:
    """The caller's template of this id or name, locked until the transaction ends.  Raises NotFound."""
    row = None
    if can_be(id):
        query = select(CUSTOM).where(called(id), T.owner == caller).with_for_update()
        row = (await connection.execute(query)).mappings().first()
    if row is None:
        raise missing(id)
    return found_of(row)


async def moved(connection: AsyncConnection, id: str, aliases: Mapping[str, int | None], latest: int) -> None:
    for alias, version in aliases.items():
        if version is not None and version > latest:
            message = f"There is no version {version} for the alias '{alias}'."
            raise BadCall(message, param=f"aliases.{alias}", code="invalid_value")
        await connection.execute(delete(ALIASES).where(A.template == id, A.alias == alias))
        if version is not None:
            row = {"template": id, "alias": alias, "version": version or latest}
            await connection.execute(insert(ALIASES).values(row))


def taken(name: str) -> BadCall:
    which = f"'{name}'" if name else "of one of them"
    message = f"The name {which} is taken: by the library, by a public template, or by one of yours."
    return BadCall(message, param="name", code="name_taken")
