"""Lookup of templates: in the library, and in the database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from plugins.templates.document import OTHER
from plugins.templates.library import Library, Version
from plugins.templates.template import Template
from plugins.templates.uses import Uses
from plugins.templates.variables import STRING
from proxy.errors import NotFound
from proxy.types import JSON

if TYPE_CHECKING:  # SQLAlchemy is only imported if templates are stored in a database
    from plugins.templates.counting import Counting
    from plugins.templates.store import Store


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which templates to list.  after: the last name of the previous page; limit: of a page."""

    category: str | None = None
    search: str | None = None
    after: str = ""
    limit: int = 100

    def fits(self, template: Template) -> bool:
        one = template.document
        if one.name <= self.after or self.category not in (None, one.category):
            return False
        return self.search is None or self.search.casefold() in f"{one.name} {one.description}".casefold()


class Lookup:
    """The library, and callers' own templates.  A library name always means the library's template.

    store, counting: None if callers cannot store templates.
    """

    def __init__(self, library: Library, uses: Uses) -> None:
        self.library = library
        self.uses = uses
        self.store: Store | None = None
        self.counting: Counting | None = None

    async def find(self, name: str, version: Version, caller: str, param: str = "name") -> Template:
        """Raises NotFound.  param: the request field that contained the name."""
        if name in self.library.names:
            found = self.library.find(name, version)
            if found is None:
                raise no_version(name, version, param)
            return found
        own = None if self.store is None else await self.store.find(name, version, caller, param)
        if own is None:
            raise self.unknown(name, param)
        return own

    def unknown(self, name: str, param: str) -> NotFound:
        near = get_close_matches(name[:64], self.library.names, 1)
        meant = f"  Did you mean '{near[0]}'?" if near else ""
        message = f"There is no template '{name[:100]}', or it is not yours.{meant}"
        return NotFound(message, param=param, code="template_not_found")

    async def listed(self, wanted: Wanted, caller: str) -> list[dict[str, JSON]]:
        """The templates that the caller may use, by name; one more than the limit if there are more."""
        own = [] if self.store is None else await self.store.listed(wanted, caller)
        by_name = {one["name"]: one for one in reversed(own)}  # the caller's own replace public ones
        by_name |= {one["name"]: one for one in self.from_library(wanted)}
        return [by_name[name] for name in sorted(by_name)[: wanted.limit + 1]]

    def from_library(self, wanted: Wanted) -> Iterator[dict[str, JSON]]:
        for template in self.library.newest():
            if wanted.fits(template):
                yield summary(template.as_json, "library")

    async def categories(self, caller: str) -> Counter[str]:
        counts = Counter(one.document.category for one in self.library.newest())
        return counts if self.store is None else counts + Counter(await self.store.categories(caller))

    async def popular(self, caller: str, limit: int) -> list[dict[str, JSON]]:
        """The most used ones, with `uses`."""
        counts = self.uses.pending if self.counting is None else await self.counting.of_library()
        newest = {one.document.name: one for one in self.library.newest()}
        found = [
            {**summary(newest[name].as_json, "library"), "uses": counts[name]} for name in counts if name in newest
        ]
        if self.store is not None:
            found += await self.store.popular(caller, limit)
        return sorted(found, key=lambda one: (-one["uses"], one["name"]))[:limit]

    async def versions(self, name: str, caller: str) -> dict[str, JSON]:
        """The version numbers, newest first, and the aliases' versions.  Raises NotFound."""
        if name in self.library.names:
            numbers = sorted(self.library.names[name], reverse=True)
            versions = [{"version": number, "created_at": None} for number in numbers]
            return {"name": name, "id": None, "versions": versions, "aliases": self.library.aliases_of(name)}
        own = None if self.store is None else await self.store.versions(name, caller)
        if own is None:
            raise self.unknown(name, "name")
        return own


def no_version(name: str, version: Version, param: str) -> NotFound:
    """param: the request field that names the template; a model's name contains the version, too."""
    param = f"{param.removesuffix('name')}version" if param.endswith("name") else param
    message = f"The template '{name}' has no version '{version}'."
    return NotFound(message[:300], param=param, code="template_version_not_found")


def summary(told: Mapping[str, JSON], source: str, id: str = "") -> dict[str, JSON]:
    """told: the template's fields.  source: `library`, `own` or `public`."""
    variables = told.get("variables", {})
    return {
        "name": told["name"],
        "version": told["version"],
        "category": told.get("category", OTHER),
        "description": told.get("description", ""),
        "variables": {
            name: {"type": said.get("type", STRING), "required": is_required(said), **said}
            for name, said in variables.items()
        },
        "input": told.get("input"),
        "model": told.get("model"),
        "source": source,
        "id": id or None,
    }


def is_required(said: Mapping[str, JSON]) -> bool:
    return said.get("default") is None and not said.get("optional", False)
