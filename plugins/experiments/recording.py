"""Outcomes that callers measure themselves, such as whether an answer was used."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import Field, StringConstraints, field_validator, model_validator
from sqlalchemy import select
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.experiments.assigning import bucket, subject
from plugins.experiments.batch import clean
from plugins.experiments.definition import SENSES, Name
from plugins.experiments.index import Experiment
from plugins.experiments.store import Conflict
from plugins.experiments.tables import CALLS, METRICS, NAMES, UNITS
from plugins.experiments.writer import Writer
from proxy.config import Strict
from proxy.errors import BadCall, Denied, NotFound
from proxy.sql.backlog import EVERY
from proxy.types import Caller

MOST: Final = 20
"""Maximum number of metric names of one experiment."""
LARGEST: Final = 1e15
Word = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00]*$")]


class Result(Strict):
    """The outcome of the call `request_id`, or of a unit: a `user`, a `conversation`, or else the caller itself.

    variant: if set, checked against the unit's variant.  caller: the owner of the unit; only admins may name another.
    """

    request_id: Word | None = None
    unit: Word | None = None
    variant: Word | None = None
    caller: Word | None = None
    metric_name: Name
    metric_value: Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _one_way(self) -> Result:
        if self.request_id is not None and self.unit is not None:
            raise ValueError("send `request_id` or `unit`, not both")
        return self

    @field_validator("metric_name")
    @classmethod
    def _own(cls, name: str) -> str:
        if name in SENSES:
            raise ValueError(f"'{name}' is counted by the server; choose another name")
        return name


@dataclass(frozen=True, slots=True)
class Recording:
    writer: Writer

    async def record(self, experiment: Experiment, result: Result, caller: Caller) -> str:
        """Count a result; returns the variant it was counted for.  Raises Denied, Conflict, BadCall or NotFound."""
        if result.caller not in (None, caller.name) and not caller.is_admin:
            raise Denied("Only admins may name another caller.", param="caller", code="not_yours")
        if experiment.status == "draft":
            raise Conflict("The experiment has not begun.", code="experiment_not_active")
        owner = result.caller or caller.name
        if result.request_id is None:
            places = of_unit(experiment, result, owner)
        row = None
        for again in (True, False):
            await self.writer.flush()
            async with self.writer.store.database.writing() as connection:
                if result.request_id is not None:
                    any_caller = caller.is_admin and result.caller is None
                    row = await self.of_call(connection, experiment, result, None if any_caller else owner)
                else:
                    row = await self.of_place(connection, experiment, places)
                if row is not None:
                    await self.add(connection, row, result)
                    return str(row["variant"])
            if again:  # another process may have the call and not have written it yet
                await asyncio.sleep(EVERY)
        name, what = ("request_id", "call") if result.request_id is not None else ("unit", "unit")
        raise NotFound(f"No such {what} of yours was counted.", param=name, code=f"{what}_not_found")

    async def of_call(
        self, connection: AsyncConnection, experiment: Experiment, result: Result, owner: str | None
    ) -> RowMapping | None:
        """The figures' key of a call.  owner: None means any caller's.  Raises BadCall for the wrong variant."""
        c = CALLS.c
        wanted = (c.call == result.request_id) & (c.experiment == experiment.id)
        if owner is not None:
            wanted &= c.caller == clean(owner)
        query = select(c.experiment, c.variant, c.unit, c.owner).where(wanted).order_by(c.id.desc()).limit(1)
        row = (await connection.execute(query)).mappings().first()
        if row is not None and result.variant not in (None, row["variant"]):
            raise not_its(row["variant"])
        return row

    async def of_place(
        self, connection: AsyncConnection, experiment: Experiment, places: tuple[str, list[str]]
    ) -> RowMapping | None:
        """The row of a unit; if it has none of its own, the shared one."""
        u, (variant, keys) = UNITS.c, places
        wanted = (u.experiment == experiment.id) & (u.variant == variant) & u.unit.in_(keys)
        query = select(u.experiment, u.variant, u.unit, u.owner).where(wanted).order_by(u.unit == keys[-1]).limit(1)
        return (await connection.execute(query)).mappings().first()

    async def add(self, connection: AsyncConnection, row: RowMapping, result: Result) -> None:
        """Raises BadCall if the experiment has too many metrics."""
        store, experiment = self.writer.store, row["experiment"]
        known = set((await connection.execute(select(NAMES.c.name).where(NAMES.c.experiment == experiment))).scalars())
        if result.metric_name not in known:
            if len(known) >= MOST:
                message = f"The experiment has {MOST} metrics, and may have no more."
                raise BadCall(message, param="metric_name", code="too_many_metrics")
            new = {"experiment": experiment, "name": result.metric_name}
            await connection.execute(store.database.insert(NAMES).values(new).on_conflict_do_nothing())
        made, m = store.database.insert(METRICS), METRICS.c
        values: dict[str, Any] = {**row, "name": result.metric_name, "results": 1, "total": result.metric_value}
        more = {name: m[name] + made.excluded[name] for name in ("results", "total")}
        keys = [m.experiment, m.name, m.variant, m.unit]
        await connection.execute(made.values(values).on_conflict_do_update(index_elements=keys, set_=more))


def of_unit(experiment: Experiment, result: Result, owner: str) -> tuple[str, list[str]]:
    """The variant of a unit, and the keys under which its figures may be.  Raises BadCall."""
    kind = experiment.definition.unit
    if kind == "request":
        message = "Units of this experiment are requests: send 'request_id'."
        raise BadCall(message, param="request_id", code="missing_required_parameter")
    who = subject(kind, owner, result.unit or "")
    assigned = experiment.assigned(who)
    if assigned is None or assigned.subject is None:
        raise BadCall("This unit does not take part in the experiment.", param="unit", code="unit_not_in_experiment")
    if result.variant not in (None, assigned.variant.name):
        raise not_its(assigned.variant.name)
    return assigned.variant.name, [who.key, bucket(who.key)]


def not_its(variant: str) -> BadCall:
    message = f"The variant is '{variant}': a unit's results count for the one that it has."
    return BadCall(message, param="variant", code="invalid_value")
