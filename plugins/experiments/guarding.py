"""Stops variants that do harm."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from plugins.experiments.index import Experiment
from plugins.experiments.results import Results, results
from plugins.experiments.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Guarding:
    store: Store

    async def look(self, experiment: Experiment) -> bool:
        """Check the experiment's guard; True if a variant was stopped.  Raises DatabaseAway."""
        if experiment.definition.guard is None:
            return False
        found = await results(self.store.database, experiment, experiment.definition.guard.metric)
        stopped = False
        for variant, why in list(harmful(found)):
            if await self.store.stop(experiment.id, variant, why):
                log.error("the variant '%s' of the experiment '%s' was stopped: %s", variant, experiment.name, why)
            stopped = True
        return stopped


def harmful(found: Results) -> Iterator[tuple[str, str]]:
    """Variants that are certainly worse than the control by more than the guard allows, and the reasons."""
    definition = found.experiment.definition
    guard = definition.guard
    assert guard is not None  # noqa: S101  (`look` checks this first)
    for variant in definition.variants[1:]:
        if variant.name in found.experiment.stops:
            continue
        against = found.compared(variant, guard.metric).against
        if against is None:
            continue
        low, high = against
        worse = low if definition.sense(guard.metric) == "lower" else -high
        if worse > guard.worse_by:
            told = f"{guard.metric} is worse than the control's by more than {guard.worse_by:g}"
            yield variant.name, f"{told}: by {worse:.4g} at least"
