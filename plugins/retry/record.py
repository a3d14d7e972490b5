"""Outcomes of the attempts of the last hours, counted in buckets of five minutes; bounded."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Final

from proxy.announcements import BROKEN_OFF, Attempt, FellBack
from proxy.host import Clock
from proxy.types import JSON

BUCKET: Final = 300
"""Seconds per bucket."""
HOURS: Final = 48
"""How far back the record reaches."""
MODELS: Final = 200
"""Pairs of a model and an upstream that are counted separately in a bucket; the rest is counted together."""
OTHERS: Final = ("(others)", "")
ERRORS: Final = 50

Pair = tuple[str, str]


class Record:
    """Counts since the server started; they survive reloads."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.time = clock.time
        self.buckets: OrderedDict[int, dict[Pair, Counter[str]]] = OrderedDict()
        self.newest: dict[Pair, Counter[str]] = {}
        self.until = float("-inf")
        """Unix seconds at which the newest bucket ends."""

    def counts(self, pair: Pair) -> Counter[str]:
        if not self.until - BUCKET <= (now := self.time()) < self.until:  # a clock may be set back
            self.begin(int(now) // BUCKET)
        if (found := self.newest.get(pair)) is not None:
            return found
        return self.newest.setdefault(pair if len(self.newest) < MODELS else OTHERS, Counter())

    def begin(self, bucket: int) -> None:
        self.newest = self.buckets.setdefault(bucket, {})
        self.until = (bucket + 1) * BUCKET
        while len(self.buckets) > HOURS * 3600 // BUCKET:
            self.buckets.popitem(last=False)

    def attempted(self, one: Attempt) -> None:
        counts = self.counts((one.model, one.upstream))
        counts["attempts"] += 1
        if not one.error and one.number == 1:  # nearly always
            return
        if one.error in BROKEN_OFF:
            counts["broken_off"] += 1
        elif one.error:
            counts["failures"] += 1
            known = f"error {one.error}" in counts or len(counts) < ERRORS
            counts[f"error {one.error}" if known else "error (others)"] += 1
        elif one.number > 1:
            counts["successes_after_retry"] += 1
        if one.number > 1:
            counts["retries"] += 1

    def fell_back(self, one: FellBack) -> None:
        self.counts((one.model, ""))["fallbacks"] += 1

    def statistics(self, hours: float) -> dict[str, JSON]:
        now = self.clock.time() / BUCKET
        since = now - hours * 3600 / BUCKET
        pairs: dict[Pair, Counter[str]] = {}
        for when, bucket in self.buckets.items():
            for pair, counts in bucket.items() if since - 1 <= when <= now else ():
                pairs.setdefault(pair, Counter()).update(counts)
        whole: Counter[str] = Counter()
        for counts in pairs.values():
            whole.update(counts)
        by = [
            {"model": model, "upstream": upstream or None, **figures(counts)}
            for (model, upstream), counts in sorted(pairs.items())
        ]
        return {"hours": hours, **figures(whole), "by_model": by}


def figures(counts: Counter[str]) -> dict[str, JSON]:
    attempts, failures, broken = counts["attempts"], counts["failures"], counts["broken_off"]
    ended = attempts - broken
    errors = {name.removeprefix("error "): count for name, count in counts.items() if name.startswith("error ")}
    return {
        "attempts": attempts,
        "failures": failures,
        "broken_off": broken,
        "failure_rate": round(failures / ended, 4) if ended else None,
        "retries": counts["retries"],
        "successes_after_retry": counts["successes_after_retry"],
        "fallbacks": counts["fallbacks"],
        "errors": errors,
    }
