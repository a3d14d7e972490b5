"""What the cache did, by model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from proxy.types import JSON, Usage

MOST: Final = 1000
"""Models that are counted each; what is over that is counted together."""
OTHERS: Final = "(others)"
OUTCOMES: Final = ("hit", "miss", "shared", "bypass", "error")


class Stats:
    """Counts since the server started; they outlive reloads."""

    def __init__(self) -> None:
        self.models: dict[str, Counter[str]] = {}
        self.seconds: dict[str, float] = {}

    def note(self, model: str, outcome: str, usage: Usage | None = None, seconds: float = 0.0) -> None:
        """usage, seconds: what was saved."""
        if model not in self.models and len(self.models) >= MOST:
            model = OTHERS
        counts = self.models.setdefault(model, Counter())
        counts[outcome] += 1
        if usage is not None:
            counts["saved_prompt_tokens"] += usage.prompt_tokens or 0
            counts["saved_completion_tokens"] += usage.completion_tokens or 0
        self.seconds[model] = self.seconds.get(model, 0.0) + seconds

    def told(self) -> dict[str, JSON]:
        models = {model: told(counts, self.seconds[model]) for model, counts in sorted(self.models.items())}
        whole: Counter[str] = Counter()
        for counts in self.models.values():
            whole.update(counts)
        return {**told(whole, sum(self.seconds.values())), "models": models}


def told(counts: Mapping[str, int], seconds: float) -> dict[str, JSON]:
    asked = sum(counts.get(name, 0) for name in ("hit", "miss", "shared"))
    names = {"hit": "hits", "miss": "misses", "shared": "shared", "bypass": "bypassed", "error": "errors"}
    return {
        **{names[name]: counts.get(name, 0) for name in OUTCOMES},
        "hit_rate": round((counts.get("hit", 0) + counts.get("shared", 0)) / asked, 4) if asked else None,
        "saved_prompt_tokens": counts.get("saved_prompt_tokens", 0),
        "saved_completion_tokens": counts.get("saved_completion_tokens", 0),
        "saved_seconds": round(seconds, 3),
    }
