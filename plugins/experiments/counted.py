"""What calls came to, added up in memory until it is written."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from plugins.experiments.book import Assigned
from plugins.experiments.tables import COUNTS
from proxy.meter import LEFT
from proxy.news import KEPT, CallEnded

LONGEST: Final = 200
"""Letters of a call's id."""


class Place(NamedTuple):
    """Of which unit the figures are."""

    experiment: str
    variant: str
    unit: str


class Seen(NamedTuple):
    """A call, for what is said of it later."""

    at: int
    call: str
    caller: str
    experiment: str
    variant: str
    unit: str
    owner: str


@dataclass(frozen=True, slots=True)
class Said:
    """That a call was rated; until: when it is no use to look for it any longer, by the monotonic clock."""

    call: str
    caller: str
    worth: int
    until: float


@dataclass(slots=True)
class Batch:
    """What is written together or not at all.  owners: of the units."""

    units: dict[Place, list[int]] = field(default_factory=dict)
    owners: dict[Place, str] = field(default_factory=dict)
    calls: list[Seen] = field(default_factory=list)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def add(self, assigned: Assigned, ended: CallEnded) -> None:
        subject = assigned.subject
        assert subject is not None  # noqa: S101  (what counts for nobody is not counted)
        place = Place(assigned.experiment.id, assigned.variant.name, subject.key)
        owner, counts = clean(subject.owner), counts_of(ended)
        if (known := self.units.get(place)) is None:
            self.units[place], self.owners[place] = counts, owner
        else:
            self.units[place] = [one + more for one, more in zip(known, counts, strict=True)]
        self.calls.append(Seen(int(ended.at * 1e6), clean(ended.id)[:LONGEST], clean(ended.caller), *place, owner))

    def moved(self, places: Mapping[Place, Place]) -> list[dict[str, Any]]:
        """The units as rows, in one order everywhere: two processes that wait for each other's rows would never end.

        places: where units belong that get no row of their own.
        """
        rows: dict[Place, tuple[str, Sequence[int]]] = {}
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
    """In the order of the columns.  Whoever leaves is nobody's error, and an answer that was cut has no time."""
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
    """What every database takes as text."""
    if text.isascii() and text.isprintable():
        return text
    return text.encode(errors="replace").decode().replace("\0", "")
