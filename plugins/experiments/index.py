"""The experiments, indexed for a lookup on every call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final

from plugins.experiments.assigning import Subject, subject_of, takes_part, variant_of
from plugins.experiments.definition import Definition, Status, Variant
from proxy.types import Call, Chat

RECENT: Final = 4096
INTERNAL: Final = "internal"
FILE: Final = "file"
API: Final = "api"
LATEST: Final = ":latest"


@dataclass(frozen=True, slots=True)
class Stop:
    """A variant that a guard has stopped.  at: seconds since 1970."""

    at: float
    why: str


@dataclass(frozen=True, slots=True)
class Experiment:
    """source: `file` or `api`.  stops: by the names of variants.  created, started, stopped: seconds since 1970."""

    id: str
    name: str
    status: Status
    definition: Definition
    source: str
    stops: Mapping[str, Stop] = field(default_factory=dict)
    created: float = 0.0
    started: float = 0.0
    stopped: float = 0.0

    @property
    def salt(self) -> str:
        return self.definition.salt or (self.name if self.source == FILE else self.id)

    def fits(self, model: str, route: str, caller: str, chat: bool) -> bool:
        wanted = self.definition.match
        if not chat and self.definition.is_for_chats:
            return False
        if not (fit(wanted.routes, route) if wanted.routes else route != INTERNAL):
            return False
        spelled = (model, model.removesuffix(LATEST))
        return (not wanted.models or any(fit(wanted.models, one) for one in spelled)) and (
            not wanted.callers or fit(wanted.callers, caller)
        )

    def assigned(self, subject: Subject) -> Assigned | None:
        """The variant of this subject; None if the subject does not take part."""
        definition = self.definition
        if not takes_part(definition, self.salt, subject.text):
            return None
        variant = variant_of(definition, self.salt, subject.text)
        if variant.name in self.stops:
            return Assigned(self, definition.control)
        return Assigned(self, variant, subject)


@dataclass(frozen=True, slots=True)
class Assigned:
    """The variant that a call gets.  subject: the unit it is counted for; None if the call is not counted."""

    experiment: Experiment
    variant: Variant
    subject: Subject | None = None

    @property
    def label(self) -> str:
        return f"{self.experiment.name}={self.variant.name}"


def fit(patterns: Iterable[str], text: str) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


class ExperimentIndex:
    """An immutable index of all experiments; a change replaces all of it."""

    def __init__(self, experiments: Iterable[Experiment] = ()) -> None:
        self.all = tuple(sorted(experiments, key=lambda one: one.name))
        self.names = {one.name: one for one in self.all}
        self.ids = {one.id: one for one in self.all}
        self.active = tuple(one for one in self.all if one.status == "active")
        self.candidates = lru_cache(RECENT)(self._candidates)

    def _candidates(self, model: str, route: str, caller: str, chat: bool) -> tuple[Experiment, ...]:
        return tuple(one for one in self.active if one.fits(model, route, caller, chat))

    def chosen(self, call: Call, opens: Callable[[Call, Experiment], bool]) -> Assigned | None:
        """The variant from the first experiment, by name, that matches the call; None if it gets none.

        opens: whether the caller may use the models of all variants.  A caller who may not is left out: errors in
        only some of the variants would bias the results.
        """
        for one in self.candidates(call.model, call.route, call.caller, isinstance(call.ask, Chat)):
            if call.models is None or opens(call, one):
                return one.assigned(subject_of(one.definition.unit, call))
        return None
