"""The results of an experiment so far."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from plugins.experiments.definition import Variant
from plugins.experiments.index import Experiment
from plugins.experiments.measured import RATIOS, Measured, measured
from plugins.experiments.statistics import (
    ALPHA,
    FEWEST,
    UNUSUAL,
    Interval,
    Moments,
    Verdict,
    difference,
    interval,
    mismatch,
    verdict,
)
from proxy.sql.database import Database
from proxy.types import JSON

NONE: Final = Measured()
UNFAIR: Final = (
    "The units are not split as the weights say (sample ratio mismatch): something treats the variants differently "
    "before they are counted, and no result here is to be trusted until it is found."
)
SHARED: Final = (
    "There are more units than have rows of their own; what came later is added up in rows that many share, and is "
    "not in the number of units."
)


@dataclass(frozen=True, slots=True)
class Compared:
    """One metric of one variant.  interval, against (the difference from the control): None if data is insufficient."""

    moments: Moments
    interval: Interval | None
    against: Interval | None
    verdict: Verdict | None
    relative: float | None


@dataclass(frozen=True, slots=True)
class Results:
    experiment: Experiment
    found: Mapping[str, Measured]

    def of(self, variant: str) -> Measured:
        return self.found.get(variant, NONE)

    def units(self, variant: str) -> int:
        """If each request is a unit, the number of calls: their rows are shared."""
        mine = self.of(variant)
        return mine.calls if self.experiment.definition.unit == "request" else mine.units

    @property
    def metrics(self) -> list[str]:
        told = {name for one in self.found.values() for name in one.moments or ()}
        return [*RATIOS, *sorted(told - set(RATIOS))]

    def compared(self, variant: Variant, metric: str) -> Compared:
        definition = self.experiment.definition
        control, mine = self.of(definition.control.name).of(metric), self.of(variant.name).of(metric)
        if variant is definition.control:
            return Compared(mine, interval(mine), None, None, None)
        against = difference(control, mine, len(definition.variants) - 1)
        enough = min(control.units, mine.units) >= FEWEST
        told = verdict(against, enough, definition.sense(metric))
        relative = None
        if control.mean and mine.mean is not None:
            relative = (mine.mean - control.mean) / abs(control.mean)  # a rise is positive even if the mean is negative
        return Compared(mine, interval(mine), against, told, relative)

    @property
    def p(self) -> float:
        """The p-value of the split among the variants that no guard has stopped."""
        running = [one for one in self.experiment.definition.variants if one.name not in self.experiment.stops]
        return mismatch([self.units(one.name) for one in running], [one.weight for one in running])

    def as_json(self) -> dict[str, JSON]:
        p = self.p
        warnings = [UNFAIR] if p < UNUSUAL else []
        if self.experiment.definition.unit != "request" and any(one.shared for one in self.found.values()):
            warnings.append(SHARED)
        return {
            "id": self.experiment.id,
            "name": self.experiment.name,
            "status": self.experiment.status,
            "unit": self.experiment.definition.unit,
            "alpha": ALPHA,
            "min_units": FEWEST,
            "srm": {"p": p, "ok": p >= UNUSUAL},
            "warnings": warnings,
            "variants": [self.variant(one) for one in self.experiment.definition.variants],
        }

    def variant(self, one: Variant) -> dict[str, JSON]:
        stop = self.experiment.stops.get(one.name)
        return {
            "name": one.name,
            "weight": one.weight,
            "units": self.units(one.name),
            "calls": self.of(one.name).calls,
            "stopped": None if stop is None else {"at": int(stop.at), "why": stop.why},
            "metrics": {metric: self.metric(one, metric) for metric in self.metrics},
        }

    def metric(self, one: Variant, metric: str) -> dict[str, JSON]:
        found = self.compared(one, metric)
        moments = found.moments
        told: dict[str, JSON] = {
            "mean": moments.mean,
            "interval": found.interval,
            "units": moments.units,
            "observations": int(moments.n),
        }
        if found.verdict is None:
            return told
        middle = None if found.against is None else sum(found.against) / 2
        difference = {"value": middle, "interval": found.against, "relative": found.relative}
        return {**told, "difference": difference, "verdict": found.verdict}

    def csv(self) -> str:
        """One line per variant and metric."""
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(HEAD)
        writer.writerows(self.lines())
        return out.getvalue()

    def lines(self) -> Iterator[list[JSON]]:
        p = self.p
        for one in self.experiment.definition.variants:
            for metric in self.metrics:
                found = self.compared(one, metric)
                low, high = found.interval or (None, None)
                less, more = found.against or (None, None)
                moments = found.moments
                yield [
                    self.experiment.name, one.name, metric, moments.units, int(moments.n), moments.mean, low, high,
                    less, more, found.relative, found.verdict, p,
                ]  # fmt: skip


HEAD: Final = (
    "experiment", "variant", "metric", "units", "observations", "mean", "mean_low", "mean_high", "difference_low",
    "difference_high", "relative", "verdict", "srm_p",
)  # fmt: skip


async def results(database: Database, experiment: Experiment, only: str | None = None) -> Results:
    """only: a single metric.  Raises DatabaseAway."""
    return Results(experiment, await measured(database, experiment.id, only))
