"""Callers' own templates in the database.  Every method that uses it raises DatabaseAway."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from pydantic import ValidationError
from sqlalchemy import ColumnElement, RowMapping, Select, and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.templates.document import ALIAS, KNOWN, LATEST, NAME, PREFIX, Document
from plugins.templates.library import Version
from plugins.templates.lookup import Wanted, no_version, summary
from plugins.templates.tables import ALIASES, CUSTOM, VERSIONS
from plugins.templates.template import Template
from proxy.errors import BadCall, NotFound
from proxy.host import Host
from proxy.records import Records
from proxy.sql.database import DatabaseAway
from proxy.types import JSON

T, V, A = CUSTOM.c, VERSIONS.c, ALIASES.c
SECOND: Final = 1_000_000
MOST_READY: Final = 1000
"""Parsed templates in the cache."""
MOST_RECENT: Final = 4096
FRESH: Final = 1.0
"""Seconds for which a lookup is cached; a change by another process is unknown here for as long."""
GOOD: Final = 60.0
"""Seconds for which a cached lookup is used while the database is unavailable."""


@dataclass(frozen=True, slots=True)
class Found:
    """A template's row, without its versions."""

    id: str
    owner: str
    name: str
    public: bool
    latest: int


def visible(caller: str) -> ColumnElement[bool]:
    return or_(T.owner == caller, T.public_name.is_not(None))


def called(name: str) -> ColumnElement[bool]:
    """Matches a name or an id."""
    return T.id == name if name.startswith(PREFIX) else T.name == name


def can_be(name: str) -> bool:
    """Whether a template can have this name or id; any other text is not looked up in the database."""
    return name.removeprefix(PREFIX).isalnum() if name.startswith(PREFIX) else NAME.fullmatch(name) is not None


class Store(Records):
    """Read access to templates, for everybody who may use them."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.ready: OrderedDict[tuple[str, int], Template] = OrderedDict()
        self.recent: dict[tuple[str, str, Version], tuple[float, Template]] = {}

    async def found(self, name: str, caller: str) -> Found | None:
        """By name or id; the caller's own before a public one."""
        if not can_be(name):
            return None
        async with self.database.reading() as connection:
            return await found(connection, and_(called(name), visible(caller)), caller)

    async def find(self, name: str, version: Version, caller: str, param: str) -> Template | None:
        """None if the caller may use no template of this name.  Raises NotFound if it has no such version."""
        if not can_be(name):
            return None
        key, now = (caller, name, version), self.host.clock.monotonic()
        at, last = self.recent.get(key, (float("-inf"), None))
        if now - at < FRESH:
            return last
        try:
            template = await self.look_up(name, version, caller, param)
        except DatabaseAway:
            if now - at < GOOD:
                return last
            raise
        if template is not None:
            if len(self.recent) >= MOST_RECENT:
                self.recent.clear()
            self.recent[key] = now, template
        return template

    async def look_up(self, name: str, version: Version, caller: str, param: str) -> Template | None:
        async with self.database.reading() as connection:
            row = await found(connection, and_(called(name), visible(caller)), caller)
            if row is None:
                return None
            number = await number_of(connection, row, version)
            if number is None:
                raise no_version(row.name, version, param)
            if (kept := self.ready.get((row.id, number))) is not None:
                return kept
            wanted = select(V.document).where(V.template == row.id, V.version == number)
            text = (await connection.execute(wanted)).scalar()
        if text is None:
            raise no_version(row.name, version, param)
        return self.keep(template_of(row.id, row.owner, text))

    def keep(self, template: Template) -> Template:
        self.ready[template.id, template.document.version] = template
        if len(self.ready) > MOST_READY:
            self.ready.popitem(last=False)
        return template

    async def listed(self, wanted: Wanted, caller: str) -> list[dict[str, JSON]]:
        """The newest versions of templates that the caller may use, by name: own ones before public ones."""
        query = (
            newest()
            .where(visible(caller), T.name > wanted.after)
            .order_by(T.name, T.owner != caller)
            .limit(2 * wanted.limit + 2)  # each of the caller's own may have a public one of the same name
        )
        if wanted.category is not None:
            query = query.where(T.category == wanted.category)
        if wanted.search is not None:
            sought = [column.icontains(wanted.search, autoescape=True) for column in (T.name, T.description)]
            query = query.where(or_(*sought))
        async with self.database.reading() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [summary_of_row(row, caller) for row in rows]

    async def own(self, caller: str) -> list[dict[str, JSON]]:
        """The newest version of each of the caller's own, by name."""
        async with self.database.reading() as connection:
            rows = (await connection.execute(newest().where(T.owner == caller).order_by(T.name))).mappings().all()
        return [summary_of_row(row, caller) for row in rows]

    async def popular(self, caller: str, limit: int) -> list[dict[str, JSON]]:
        query = newest().where(visible(caller), T.uses > 0).order_by(T.uses.desc(), T.name).limit(limit)
        async with self.database.reading() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [{**summary_of_row(row, caller), "uses": row["uses"]} for row in rows]

    async def categories(self, caller: str) -> dict[str, int]:
        query = select(T.category, func.count().label("templates")).where(visible(caller)).group_by(T.category)
        async with self.database.reading() as connection:
            return {row.category: row.templates for row in await connection.execute(query)}

    async def versions(self, name: str, caller: str) -> dict[str, JSON] | None:
        if not can_be(name):
            return None
        async with self.database.reading() as connection:
            row = await found(connection, and_(called(name), visible(caller)), caller)
            if row is None:
                return None
            query = select(V.version, V.created).where(V.template == row.id).order_by(V.version.desc())
            versions = (await connection.execute(query)).all()
            aliases = await aliases_of(connection, row.id)
        numbers = [{"version": number, "created_at": created // SECOND} for number, created in versions]
        return {"name": row.name, "id": row.id, "versions": numbers, "aliases": {**aliases, LATEST: row.latest}}

    async def exported(self, caller: str, name: str | None) -> list[dict[str, JSON]]:
        """The caller's own: every version of the named one; without a name, newest versions and those with an alias."""
        query = select(T.id, V.version, V.document).join(VERSIONS, V.template == T.id).where(T.owner == caller)
        if name is None:
            aliased = select(A.version).where(A.template == T.id).scalar_subquery()
            query = query.where(or_(V.version == T.latest, V.version.in_(aliased)))
        else:
            query = query.where(called(name))
        async with self.database.reading() as connection:
            rows = (await connection.execute(query.order_by(T.name, V.version))).all()
            named = select(A.template, A.version, A.alias).join(CUSTOM, T.id == A.template).where(T.owner == caller)
            aliases: dict[tuple[str, int], list[str]] = {}
            for template, version, alias in await connection.execute(named.order_by(A.alias)):
                aliases.setdefault((template, version), []).append(alias)
        return list(written(rows, aliases))


def written(rows: Sequence[Any], aliases: Mapping[tuple[str, int], list[str]]) -> Iterator[dict[str, JSON]]:
    for id, version, text in rows:
        document = orjson.loads(text)
        head = {"name": document.pop("name"), "version": document.pop("version")}
        mine = aliases.get((id, version))
        yield {**head, **({"aliases": mine} if mine else {}), **document}


def newest() -> Select[Any]:
    return select(CUSTOM, V.document).join(VERSIONS, and_(V.template == T.id, V.version == T.latest))


def summary_of_row(row: RowMapping, caller: str) -> dict[str, JSON]:
    """Not validated: for hundreds of templates that would block the event loop."""
    return summary(orjson.loads(row["document"]), "own" if row["owner"] == caller else "public", row["id"])


def template_of(id: str, owner: str, text: str) -> Template:
    """Raises BadCall if this version of the server does not accept the template, which another version wrote."""
    try:
        return Template(Document.model_validate(orjson.loads(text), context=KNOWN), id, owner)
    except ValidationError:
        message = f"The template '{id}' was written by another version of this server; send it again."
        raise BadCall(message, param="template.name", code="invalid_template") from None


async def found(connection: AsyncConnection, where: ColumnElement[bool], caller: str) -> Found | None:
    query = select(CUSTOM).where(where).order_by(T.owner != caller).limit(1)
    row = (await connection.execute(query)).mappings().first()
    return None if row is None else found_of(row)


def found_of(row: RowMapping) -> Found:
    return Found(row["id"], row["owner"], row["name"], row["public_name"] is not None, row["latest"])


async def number_of(connection: AsyncConnection, row: Found, version: Version) -> int | None:
    """The version that a number or an alias stands for; the existence of a number is not checked."""
    if version is None or version == LATEST:
        return row.latest
    if isinstance(version, int):
        return version if version <= row.latest else None
    if not ALIAS.fullmatch(version):
        return None
    query = select(A.version).where(A.template == row.id, A.alias == version)
    number: int | None = (await connection.execute(query)).scalar()
    return number


async def aliases_of(connection: AsyncConnection, id: str) -> dict[str, int]:
    query = select(A.alias, A.version).where(A.template == id).order_by(A.alias)
    return {row.alias: row.version for row in await connection.execute(query)}


def missing(id: str) -> NotFound:
    message = f"There is no template '{id[:100]}' of yours."
    return NotFound(message, param="id", code="template_not_found")
