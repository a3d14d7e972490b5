"""Gives each call its unit's variant of an experiment, and counts the outcome."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Final, Self

from pydantic import PositiveInt

from plugins.experiments.api import Api
from plugins.experiments.assigning import subject_of
from plugins.experiments.caller_data import CallerFigures
from plugins.experiments.definition import InFile, Name
from plugins.experiments.guarding import Guarding
from plugins.experiments.index import Assigned, Experiment
from plugins.experiments.registry import LOOK, ExperimentRegistry, missing
from plugins.experiments.retention import Retention
from plugins.experiments.selection import FIELD, NAMES, TEMPLATE, TEMPLATES, Selection, changed, selection_of
from plugins.experiments.store import MOST, Store, from_file
from plugins.experiments.tables import FEATURE
from plugins.experiments.writer import Writer
from proxy.announcements import CallEnded, Rated
from proxy.config import Strict
from proxy.errors import BadCall, Busy, Denied, ProxyError
from proxy.host import Host, PeriodicTasks
from proxy.meter import metered
from proxy.types import Call, Handler, Reply, Route

log = logging.getLogger(__name__)
FACT: Final = "experiment"
COMPARISON: Final = "comparison"
"""Tag of calls that belong to a side-by-side comparison of models."""
WATCH: Final = 10.0
"""Seconds between two checks of the guards."""
TIDY: Final = 3600.0
"""Seconds between two deletions of old rows."""
PATIENCE: Final = 5.0
"""Seconds that writing the last figures may take at shutdown."""


class Experiments:
    """Splits calls among variants of models, templates, system prompts and parameters, the same one for the same user.

    Its analysis of which is better is valid however often one looks.  Goes before plugins that count by model, and
    before those that add to a prompt.
    """

    place = "chooses"
    fields = frozenset({FIELD})
    prefixes = (NAMES,)
    tables = FEATURE

    class Settings(Strict):
        experiments: dict[Name, InFile] = {}  # noqa: RUF012  (pydantic copies defaults)
        """Experiments by name; admins can make others over HTTP."""
        pending: PositiveInt = 100_000
        """Calls that each process keeps while the database is away; further ones are not counted, which the log and the
        results say."""
        max_units: PositiveInt = 100_000
        """Users, callers or conversations with their own figures in an experiment; further ones share rows."""
        rate_days: PositiveInt = 7
        """Days within which a rating or a result can still be assigned to its call."""
        rate_calls: PositiveInt = 1_000_000
        """How many of the newest calls are kept for that."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self.settings = settings
        self.host = host
        store = Store(host)
        self.registry = ExperimentRegistry(
            store, [from_file(name, told) for name, told in settings.experiments.items()], host
        )
        self.writer = host.process_state("experiments writer", lambda: Writer(store))
        if not self.writer.most:
            self.adopted()
        host.once_adopted(self.adopted)
        self.retention = Retention(store, settings.rate_days, settings.rate_calls)
        self.guarding = Guarding(store)
        self.held: dict[str, Assigned] = {}
        """What each call in progress counts for, by its meter's id.  CallEnded, which every call sends, removes it."""
        self.odd: set[str] = set()
        """Variants whose templates are not filled in, because no `templates` follows in the chain."""
        self.periodic = PeriodicTasks(host.background)
        host.record_fact(FACT)
        host.register_caller_data(CallerFigures(self.writer))
        host.on(CallEnded, self.ended)
        host.on(Rated, self.rated)

    def adopted(self) -> None:
        self.writer.most, self.writer.most_units = self.settings.pending, self.settings.max_units

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        index = self.registry.index
        wished = call.model.startswith(NAMES) or (call.extra and FIELD in call.extra)
        if not wished and not index.active:
            return await call_next(call)
        if FACT in call.tags:  # a plugin further in has sent this call through the chain again
            return await call_next(call)
        if not wished and COMPARISON in call.tags:  # a comparison of models needs each model unchanged
            return await call_next(call)
        selection = selection_of(call)
        assigned = index.chosen(call, self.opens) if selection is None else self.wished(call, selection)
        if assigned is None:
            return await call_next(call)
        if assigned.subject is None:
            return await self.asked(assigned, call_next, call)
        return await metered(call, partial(self.counted, assigned, call_next), self.host)

    def wished(self, call: Call, selection: Selection) -> Assigned:
        """The variant for a call that names an experiment; the control if that is not running.  Raises NotFound."""
        one = self.registry.index.names.get(selection.name)
        if one is None:
            raise missing(selection.name, selection.param)
        definition = one.definition
        if selection.variant is not None:
            forced = next((variant for variant in definition.variants if variant.name == selection.variant), None)
            if forced is None:
                names = ", ".join(variant.name for variant in definition.variants)
                message = f"The experiment '{one.name}' has no variant '{selection.variant[:100]}'; it has {names}."
                raise BadCall(message, param="experiment.variant", code="invalid_value")
            return Assigned(one, forced)
        assigned = one.assigned(subject_of(definition.unit, call)) if one.status == "active" else None
        if assigned is not None and not self.fair(call, one):
            return Assigned(one, assigned.variant)
        return assigned or Assigned(one, definition.control)

    def fair(self, call: Call, one: Experiment) -> bool:
        """Whether the caller may use every variant; otherwise errors in only some of them would bias the results."""
        try:
            for variant in one.definition.variants:
                self.check(changed(call, variant))
        except (BadCall, Denied):
            return False
        return True

    def check(self, made: Call) -> None:
        """Raises Denied if the caller may not use the model."""
        if not made.model.startswith(TEMPLATES):  # `templates` knows the model of a template and checks it
            self.host.models.check(made)

    def opens(self, call: Call, one: Experiment) -> bool:
        """Whether the caller may use the models of all variants."""
        try:
            for variant in one.definition.variants:
                if variant.model is not None:
                    self.host.models.check(call.but(model=variant.model))
        except Denied:
            return False
        return True

    async def counted(self, assigned: Assigned, call_next: Handler, call: Call) -> Reply:
        self.held[call.meter] = assigned
        return await self.asked(assigned, call_next, call)

    async def asked(self, assigned: Assigned, call_next: Handler, call: Call) -> Reply:
        made = changed(call, assigned.variant)
        made = made.but(tags={**made.tags, FACT: assigned.label})
        self.check(made)
        try:
            reply = await call_next(made)
        except ProxyError as error:
            error.facts[FACT] = assigned.label
            raise
        if assigned.variant.template is not None and TEMPLATE not in reply.facts:
            self.announce_once(assigned.label)
        return reply.noting(**{FACT: assigned.label})

    def announce_once(self, label: str) -> None:
        if label not in self.odd and len(self.odd) < MOST:
            self.odd.add(label)
            log.error("%s names a template, but the plugin `templates` does not follow in the chain", label)

    def ended(self, ended: CallEnded) -> None:
        if self.held and (assigned := self.held.pop(ended.meter, None)) is not None:
            self.writer.add(assigned, ended)

    def rated(self, rated: Rated) -> None:
        if self.registry.index.all:
            self.writer.rated(rated)

    async def watch(self) -> None:
        """Check the guards of all active experiments.  Raises DatabaseAway."""
        stopped = [await self.guarding.look(one) for one in self.registry.index.active]
        if any(stopped):
            await self.registry.read()

    async def tidy(self) -> None:
        await self.registry.note()
        await self.retention.tidy()

    async def __aenter__(self) -> Self:
        with suppress(Busy):  # an unavailable database must not keep a new configuration from being used
            await self.registry.read()
        start = self.host.background.start
        if self.writer.task is None:  # one writer serves the pipelines of all later reloads, too
            self.writer.task = start(self.writer.run(), "writing what experiments have counted")
        self.periodic.every(LOOK, self.registry.read, "looking for new experiments")
        self.periodic.every(WATCH, self.watch, "guarding experiments")
        self.periodic.every(TIDY, self.tidy, "deleting what is old of experiments", calm=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.periodic.end()
        await self.writer.close(PATIENCE)

    def routes(self) -> Iterable[Route]:
        return Api(self.registry, self.writer, self.host).routes()
