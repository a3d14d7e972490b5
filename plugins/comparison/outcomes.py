"""What became of one comparison, as far as figures need it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

MODELS: Final = 100
"""Models of which figures are told: those that were compared most."""


class Brief(NamedTuple):
    """What figures need of one answer; see `tables.RESULTS`."""

    model: str
    named: str
    success: int
    duration_ns: int
    eval_ns: int
    letters: int
    first_ns: int | None
    eval_count: int | None
    cached: int
    cost: int | None
    currency: str
    rating: int


@dataclass(slots=True)
class Outcome:
    """What figures need of one comparison.  results: by place."""

    vote: int | None
    results: dict[int, Brief] = field(default_factory=dict)
    judgements: list[tuple[int, int, int]] = field(default_factory=list)
    """Two places, and which of them won, or TIE."""


class Names:
    """Models by the one form of their names, and what they were called last.  It is told of the newest first."""

    def __init__(self) -> None:
        self.called: dict[str, str] = {}
        self.times: Counter[str] = Counter()

    def add(self, results: Iterable[Brief]) -> None:
        for one in results:
            self.called.setdefault(one.named, one.model)
            self.times[one.named] += 1

    def most(self) -> dict[str, str]:
        """By its one form, what a model is called; of those that were compared most, sorted."""
        most = sorted(self.called, key=lambda name: (-self.times[name], name))[:MODELS]
        return {name: self.called[name] for name in sorted(most)}
