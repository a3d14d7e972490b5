"""Statistics of the cache, by model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from proxy.types import JSON, Usage

MOST: Final = 1000
"""Models that are counted separately; all further ones are counted together, as `OTHERS`."""
OTHERS: Final = "(others)"
OUTCOMES: Final = {"hit": "hits", "miss": "misses", "shared": "shared", "bypass": "bypassed", "error": "errors"}


@dataclass(slots=True)
class Counts:
    """The counts of one model.  Tokens and seconds are those that cache hits saved."""

    outcomes: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


class Stats:
    """Counts since the server started; reloads of the configuration keep them."""

    def __init__(self) -> None:
        self.models: dict[str, Counts] = {}

    def note(self, model: str, outcome: str) -> None:
        self.of(model).outcomes[outcome] += 1

    def saved(self, model: str, usage: Usage, seconds: float = 0.0) -> None:
        """Count the tokens and seconds that a cache hit saved."""
        counts = self.of(model)
        counts.prompt_tokens += usage.prompt_tokens or 0
        counts.completion_tokens += usage.completion_tokens or 0
        counts.seconds += seconds

    def of(self, model: str) -> Counts:
        counts = self.models.get(model)
        if counts is None:
            counts = self.models.setdefault(model if len(self.models) < MOST else OTHERS, Counts())
        return counts

    def as_json(self) -> dict[str, JSON]:
        whole = Counts()
        for one in self.models.values():
            whole.outcomes.update(one.outcomes)
            whole.prompt_tokens += one.prompt_tokens
            whole.completion_tokens += one.completion_tokens
            whole.seconds += one.seconds
        return {
            **counts_as_json(whole),
            "models": {model: counts_as_json(counts) for model, counts in sorted(self.models.items())},
        }


def counts_as_json(counts: Counts) -> dict[str, JSON]:
    known = counts.outcomes
    asked = known["hit"] + known["miss"] + known["shared"]
    return {
        **{name: known[outcome] for outcome, name in OUTCOMES.items()},
        "hit_rate": round((known["hit"] + known["shared"]) / asked, 4) if asked else None,
        "saved_prompt_tokens": counts.prompt_tokens,
        "saved_completion_tokens": counts.completion_tokens,
        "saved_seconds": round(counts.seconds, 3),
    }
