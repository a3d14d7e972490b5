"""The parts of a comparison that rankings and statistics need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

MODELS: Final = 100
"""Maximum number of models in a result: those compared most often."""


class Brief(NamedTuple):
    """The columns of an answer that statistics need; see `tables.RESULTS`."""

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
    """The parts of a comparison that rankings and statistics need.  results: by place."""

    vote: int | None
    results: dict[int, Brief] = field(default_factory=dict)
    judgements: list[tuple[int, int, int]] = field(default_factory=list)
    """Two places, and the one that won, or TIE."""


class Names:
    """The display names of models by normalised name.  Results are added newest first, so the latest name is shown."""

    def __init__(self) -> None:
        self.called: dict[str, str] = {}
        self.times: Counter[str] = Counter()

    def add(self, results: Iterable[Brief]) -> None:
        for one in results:
            self.called.setdefault(one.named, one.model)
            self.times[one.named] += 1

    def most(self) -> dict[str, str]:
        """Display name by normalised name, sorted, of the models compared most often."""
        most = sorted(self.called, key=lambda name: (-self.times[name], name))[:MODELS]
        return {name: self.called[name] for name in sorted(most)}
