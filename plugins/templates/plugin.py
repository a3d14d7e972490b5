"""Applies a template's messages, model and parameters to a call that names it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from pydantic import PositiveInt

from plugins.templates import library
from plugins.templates.api import Api
from plugins.templates.feature import FEATURE
from plugins.templates.library import Files, Library
from plugins.templates.lookup import Lookup
from plugins.templates.models import Answering, Listing
from plugins.templates.selection import FIELD, PREFIX, Selection, selection_of
from plugins.templates.template import led
from plugins.templates.uses import Uses
from proxy.asks import pictured_at
from proxy.config import Strict
from proxy.errors import BadCall, ProxyError
from proxy.host import Host
from proxy.models import ModelInfo
from proxy.types import Call, Caller, Chat, Endpoints, Handler, Reply, Route

FACT: Final = "template"
OWN_SYSTEM: Final = "own_system"
VARIANTS_TEMPLATE: Final = "variants_template"
"""Tags of an experiment's call: the caller's own system message, and a template that is not the caller's choice."""


class Templates:
    """Prompts with names: a call that names one gets its messages, model and parameters, filled with checked variables.

    They come from the packaged library, from a folder of files, and from callers.
    """

    place = "begins"
    fields = frozenset({FIELD})
    brings = frozenset({FIELD, PREFIX})
    prefixes = (PREFIX,)

    class Settings(Strict):
        model: str | None = None
        """The model for templates without one, if the caller names none either; `*` is the first by name that is
        available and can chat."""
        listed: tuple[str, ...] = ()
        """Templates that appear in the lists of models as `template:NAME`, by patterns of their names, such as
        `extract_*`: those of the library, the folder and the caller's own that need nothing but a message."""
        library: bool = True
        """Whether the packaged templates are available."""
        path: str | None = None
        """A folder of YAML files with your own templates, read with the configuration; they take precedence over
        templates of the library with the same name."""
        max_length: PositiveInt = 1_000_000
        """Maximum characters of a template's rendered messages."""
        custom: bool = True
        """Whether callers may store their own templates, in the `database`."""
        max_templates: PositiveInt = 200
        """Templates that one caller may store."""
        max_versions: PositiveInt = 100
        """Versions of one template; none is ever changed."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self.settings = settings
        self.host = host
        host.record_fact(FACT)
        read = host.process_state("templates files", Files)
        files = Library(() if settings.path is None else read.read(Path(settings.path)))
        whole = files.over(library.built_in()) if settings.library else files
        self.lookup = Lookup(whole, host.process_state("templates uses", Uses))
        self.answering = Answering(settings.model, host)
        self.listing = Listing(settings.listed, self.lookup, self.answering)
        self.parts: list[Endpoints] = [Api(self.lookup, host, self.applied, settings.max_length, self.answering)]
        self.task: asyncio.Task[None] | None = None
        if settings.custom:
            self.tables = FEATURE
            self.parts.append(self.custom())

    def custom(self) -> Endpoints:
        """Add the callers' own templates, which are in the database, to the lookup."""
        from plugins.templates.caller_data import CallerTemplates
        from plugins.templates.counting import Counting  # SQLAlchemy is only needed for custom templates
        from plugins.templates.custom import Custom
        from plugins.templates.store import Store
        from plugins.templates.writing import Limits, Writing

        store = self.lookup.store = Store(self.host)
        self.lookup.counting = Counting(self.lookup.uses, self.host)
        limits = Limits(self.settings.max_templates, self.settings.max_versions)
        writing = Writing(store, limits, frozenset(self.lookup.library.names))
        self.host.register_caller_data(CallerTemplates(store, writing))
        return Custom(store, writing, self.host)

    async def __aenter__(self) -> Self:
        if self.lookup.counting is not None:
            self.task = self.host.background.start(self.lookup.counting.run(), "counting uses of templates")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.task is not None:
            self.task.cancel()
            with suppress(asyncio.CancelledError):
                await self.task
        if self.lookup.counting is not None:
            await self.lookup.counting.close()

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        selection, asked = selection_of(call), call.ask
        if selection is not None:
            call = await self.applied(call, selection)
        label = call.tags.get(FACT)
        if label is None:
            return await call_next(call)
        self.host.models.check(call)
        try:
            reply = await call_next(call)
        except ProxyError as error:
            error.facts[FACT] = label
            if error.param and error.param.startswith("messages["):  # indexes count the template's messages, too
                error.renamed(pictured_at(asked.messages) if isinstance(asked, Chat) else None)
            raise
        return reply.noting(**{FACT: label})

    async def applied(self, call: Call, selection: Selection) -> Call:
        """The call with its template applied.  Raises BadCall or NotFound."""
        if not isinstance(call.ask, Chat):
            raise BadCall("Templates are for chats only.", param=selection.param, code="template_not_for_this")
        template = await self.lookup.find(selection.name, selection.version, call.caller, selection.param)
        ask = template.asked(call.ask, selection.variables, self.settings.max_length)
        named = call.model if not call.model.startswith(PREFIX) else ""
        model = named or await self.answering.needed(template, call.models)
        self.lookup.uses.note(template)
        extra = {name: value for name, value in call.extra.items() if name != FIELD}
        tags = {**call.tags, FACT: template.label}
        if OWN_SYSTEM in tags and VARIANTS_TEMPLATE not in tags:
            leads = (one for one in ask.messages[: led(ask.messages)] if one not in call.ask.messages)
            tags[OWN_SYSTEM] = "\n\n".join(filter(None, (*(one.text for one in leads), tags[OWN_SYSTEM])))
        return call.but(ask=ask, model=model, extra=extra, tags=tags)

    async def offered(self, caller: Caller, listed: Sequence[ModelInfo]) -> Mapping[str, ModelInfo]:
        return await self.listing.offered(caller, listed)

    def routes(self) -> Iterable[Route]:
        for part in self.parts:
            yield from part.routes()
