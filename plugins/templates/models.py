"""Which model answers for a template, and which templates are in the list of models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from plugins.templates.document import Document
from plugins.templates.lookup import Lookup, Wanted
from plugins.templates.selection import PREFIX
from plugins.templates.template import Template
from proxy.errors import BadCall, Busy, UpstreamError
from proxy.host import Host
from proxy.models import ModelInfo
from proxy.types import JSON, Caller

FIRST: Final = "*"
"""Instead of a model's name: the first one, by name, that can chat."""
CHAT: Final = "completion"


@dataclass(frozen=True, slots=True)
class Answering:
    """usual: the model for templates that name none; `*` is the first by name that can chat, None is none."""

    usual: str | None
    host: Host

    async def named(self, document: Document, patterns: tuple[str, ...] | None) -> str | None:
        """The model to use if the caller names none; None if there is none.

        patterns: of the models that the caller may use.  Raises UpstreamError if no upstream lists its models.
        """
        name = document.model or self.usual
        if name != FIRST:
            return name
        return first(await self.host.models.all(patterns))

    async def needed(self, template: Template, patterns: tuple[str, ...] | None) -> str:
        """Like `named`; raises BadCall if there is none."""
        if (name := await self.named(template.document, patterns)) is None:
            why = "and there is none here that can chat" if self.usual == FIRST else "and neither do the settings"
            message = (
                f"The template '{template.label}' names no model, {why}: send one in 'model', and the template's name "
                "in 'template.name'."
            )
            raise BadCall(message, param="model", code="template_without_model")
        return name


def first(listed: Iterable[ModelInfo]) -> str | None:
    """The first by name, so that the choice does not depend on what is loaded or was pulled last; models that are known
    to chat come before those of unknown capabilities."""
    known: dict[bool | None, list[str]] = {}
    for one in listed:
        known.setdefault(one.can(CHAT), []).append(one.name)
    return min(known.get(True) or known.get(None) or [""], key=bare) or None


def bare(name: str) -> str:
    return name.removesuffix(":latest")


@dataclass(frozen=True, slots=True)
class Listing:
    """patterns: of the names of templates to list."""

    patterns: tuple[str, ...]
    lookup: Lookup
    answering: Answering

    async def offered(self, caller: Caller, listed: Sequence[ModelInfo]) -> Mapping[str, ModelInfo]:
        """By `template:NAME`, the model that answers: for the library's templates and the caller's own that need only a
        message.  listed: the models that the caller may use."""
        if not self.patterns:
            return {}
        found: dict[str, ModelInfo] = {}
        behind: dict[str, ModelInfo | None] = {}
        for one in await self.summaries(caller.name):
            name = one["model"] or self.answering.usual
            if name is None or not is_filled_by_a_message(one):
                continue
            if name not in behind:
                behind[name] = await self.model(name, caller, listed)
            if (model := behind[name]) is not None:
                found[PREFIX + one["name"]] = model
        return dict(sorted(found.items()))

    async def summaries(self, caller: str) -> list[dict[str, JSON]]:
        """Only those of the library while the database is unavailable."""
        own: list[dict[str, JSON]] = []
        if self.lookup.store is not None:
            with suppress(Busy):
                own = await self.lookup.store.own(caller)
        mine = [one for one in own if one["name"] not in self.lookup.library.names]
        return [one for one in (*self.lookup.from_library(Wanted()), *mine) if self.shows(one["name"])]

    def shows(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)

    async def model(self, name: str, caller: Caller, listed: Sequence[ModelInfo]) -> ModelInfo | None:
        if name == FIRST:
            name = first(listed) or name
        with suppress(UpstreamError):
            return await self.answering.host.models.info(name, caller.models)
        return None


def is_filled_by_a_message(summary: Mapping[str, JSON]) -> bool:
    """Whether a client that can only choose a model can use the template."""
    wanted = {name for name, variable in summary["variables"].items() if variable["required"]}
    return wanted <= {summary["input"]}
