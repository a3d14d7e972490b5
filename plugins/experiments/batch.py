"""The figures of calls, summed in memory until they are written to the database."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from plugins.experiments.index import Assigned
from plugins.experiments.tables import COUNTS
from proxy.announcements import KEPT, CallEnded
from proxy.meter import LEFT

LONGEST: Final = 200
"""Maximum length of a call's id, in characters."""


class FigureKey(NamedTuple):
    """The key of a row of figures: experiment, variant and unit."""

    experiment: str
    variant: str
    unit: str


class RecordedCall(NamedTuple):
    """A call of an experiment, stored so that a later rating or result can be assigned to it."""

    at: int
    call: str
    caller: str
    experiment: str
    variant: str
    unit: str
    owner: str


@dataclass(frozen=True, slots=True)
class PendingRating:
    """A rating of a call.  until: when to stop looking for the call, by the monotonic clock."""

    call: str
    caller: str
    worth: int
    until: float


@dataclass(slots=True)
class Batch:
    """Figures that are written in one transaction.  owners: the callers that the units belong to."""

    units: dict[FigureKey, list[int]] = field(default_factory=dict)
    owners: dict[FigureKey, str] = field(default_factory=dict)
    calls: list[RecordedCall] = field(default_factory=list)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def add(self, assigned: Assigned, ended: CallEnded) -> None:
        subject = assigned.subject
        assert subject is not None  # noqa: S101  (calls without a subject are not counted)
        place = FigureKey(assigned.experiment.id, assigned.variant.name, subject.key)
        owner, counts = clean(subject.owner), counts_of(ended)
        if (known := self.units.get(place)) is None:
            self.units[place], self.owners[place] = counts, owner
        else:
            self.units[place] = [one + more for one, more in zip(known, counts, strict=True)]
        self.calls.append(
            RecordedCall(int(ended.at * 1e6), clean(ended.id)[:LONGEST], clean(ended.caller), *place, owner)
        )

    def moved(self, places: Mapping[FigureKey, FigureKey]) -> list[dict[str, Any]]:
        """The units as rows, always in the same order: otherwise two processes writing the same rows could deadlock.

        places: the shared row of each unit that gets no row of its own.
        """
        rows: dict[FigureKey, tuple[str, Sequence[int]]] = {}
        for place, counts in self.units.items():
            owner, to = self.owners[place], place
            if (shared := places.get(place)) is not None:
                owner, to = "", shared
            if (known := rows.get(to)) is not None:
                counts = [one + more for one, more in zip(known[1], counts, strict=True)]
            rows[to] = owner, counts
        return [
            {**to._asdict(), "owner": owner, **dict(zip(COUNTS, counts, strict=True))}
            for to, (owner, counts) in sorted(rows.items())
        ]


def counts_of(ended: CallEnded) -> list[int]:
    """In the order of COUNTS.  A client's disconnect is not an error; only complete answers have times and tokens."""
    answered = not ended.error
    begun = answered and ended.first_ns is not None
    cost = None if ended.cost is None else ended.cost.amount
    return [
        1,
        int(ended.error not in ("", LEFT)),
        int(ended.cache in KEPT),
        int(answered),
        ended.total_ns if answered else 0,
        int(begun),
        (ended.first_ns or 0) if begun else 0,
        (ended.completion_tokens or 0) if answered else 0,
        int(cost is not None),
        cost or 0,
        0,
        0,
    ]


def clean(text: str) -> str:
    """The text without what a database rejects: lone surrogates and NUL characters."""
    if text.isascii() and text.isprintable():
        return text
    return text.encode(errors="replace").decode().replace("\0", "")
