"""Statistics of answers by model: times, tokens, ratings and costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from plugins.comparison.outcomes import Brief, Names, Outcome
from proxy.prices import money
from proxy.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Counts:
    """Sums over comparisons, which are added newest first."""

    def __init__(self) -> None:
        self.names = Names()
        self.comparisons = self.votes = 0
        self.sums: dict[str, Sum] = {}
        """By the normalised name of the model."""

    def add(self, one: Outcome) -> None:
        self.comparisons += 1
        self.votes += one.vote is not None
        self.names.add(one.results.values())
        for result in one.results.values():
            self.sums.setdefault(result.named, Sum()).add(result)

    def as_json(self) -> dict[str, JSON]:
        models = [{"model": called, **self.sums[name].as_json()} for name, called in self.names.most().items()]
        return {"comparisons": self.comparisons, "votes": self.votes, "models": models}


@dataclass(slots=True)
class Sum:
    """The sums over one model's answers.  Times exclude cached answers.

    tokens, eval_ns: of answers for which the upstream reported a time.  currency: of the newest answer with a price;
    costs in other currencies are ignored.
    """

    answers: int = 0
    good: int = 0
    cached: int = 0
    letters: int = 0
    durations: list[int] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)
    tokens: int = 0
    eval_ns: int = 0
    up: int = 0
    down: int = 0
    cost: int | None = None
    currency: str = ""

    def add(self, one: Brief) -> None:
        self.answers += 1
        self.up += one.rating > 0
        self.down += one.rating < 0
        self.pay(one)
        if not one.success:
            return
        self.good += 1
        self.letters += one.letters
        if one.cached:
            self.cached += 1
            return
        self.durations.append(one.duration_ns)
        if one.first_ns is not None:
            self.firsts.append(one.first_ns)
        if one.eval_ns and one.eval_count is not None:
            self.tokens += one.eval_count
            self.eval_ns += one.eval_ns

    def pay(self, one: Brief) -> None:
        if one.cost is None:
            return
        self.currency = self.currency or one.currency
        if one.currency == self.currency:
            self.cost = (self.cost or 0) + one.cost

    def as_json(self) -> dict[str, JSON]:
        return {
            "answers": self.answers,
            "success_rate": round(self.good / self.answers, 4) if self.answers else None,
            "cached": self.cached,
            "duration": percentiles(self.durations, 1e9),
            "first_token_ms": percentiles(self.firsts, 1e6),
            "tokens_per_second": round(self.tokens * 1e9 / self.eval_ns, 2) if self.eval_ns else None,
            "average_letters": round(self.letters / self.good, 1) if self.good else None,
            "up": self.up,
            "down": self.down,
            "cost": money(self.cost),
            "currency": self.currency or None,
        }


def percentiles(nanoseconds: Sequence[int], unit: float) -> dict[str, JSON]:
    """Median and 90th percentile.  unit: the nanoseconds in one unit of the result."""
    if not nanoseconds:
        return {"p50": None, "p90": None}
    import numpy as np

    values: NDArray[np.float64] = np.asarray(nanoseconds, dtype=np.float64) / unit
    middle, most = np.percentile(values, [50, 90])
    return {"p50": round(float(middle), 3), "p90": round(float(most), 3)}
