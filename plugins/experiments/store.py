"""Experiments in the database.  Every method that uses it raises DatabaseAway."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import orjson
from pydantic import ValidationError
from sqlalchemy import ColumnElement, Table, delete, func, insert, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from plugins.experiments.definition import PREFIX, Definition, InFile
from plugins.experiments.index import API, FILE, Experiment, Stop
from plugins.experiments.tables import EXPERIMENTS, METRICS, NAMES, STOPS, UNITS
from proxy.errors import BadCall, ProxyError
from proxy.host import Host
from proxy.records import Records
from proxy.sql.database import Database
from proxy.wire.ids import new_id

log = logging.getLogger(__name__)
E: Final = EXPERIMENTS.c
MICRO: Final = 1e6
MOST: Final = 200
"""Maximum number of experiments made over HTTP."""
Version: TypeAlias = tuple[int, ...]
Rows: TypeAlias = tuple[list[dict[str, Any]], list[dict[str, Any]]]
PARTS: Final = (STOPS, NAMES, METRICS, UNITS)
"""Tables whose rows belong to an experiment.  CALLS is not among them: its rows expire."""
CHUNK: Final = 2000
"""Rows deleted at once."""


class Conflict(ProxyError):
    """The experiment's state does not allow this."""

    status, kind = 409, "invalid_request_error"


def from_file(name: str, told: InFile) -> Experiment:
    """Its id includes a digest of the definition: a changed definition starts with new results."""
    definition = told.bare()
    return Experiment(f"{name}@{definition.digest()}", name, told.status, definition, FILE)


class Store(Records):
    def __init__(self, host: Host) -> None:
        self.host = host

    async def note(self, experiments: Iterable[Experiment]) -> None:
        """Record that these experiments are in the configuration."""
        now = self.now()
        rows = [{**row_of(one), "created": now, "updated": now} for one in sorted(experiments, key=lambda one: one.id)]
        if rows:
            made = self.database.insert(EXPERIMENTS)
            new = {name: made.excluded[name] for name in ("status", "definition", "updated")}
            async with self.database.writing() as connection:
                await connection.execute(made.on_conflict_do_update(index_elements=[E.id], set_=new), rows)

    async def version(self) -> Version:
        """Differs after every change, whatever the servers' clocks say."""
        changes = select(func.count(), func.sum(E.updated)).select_from(EXPERIMENTS)
        stops = select(func.count(), func.sum(STOPS.c.at)).select_from(STOPS)
        async with self.database.reading() as connection:
            first, second = (await connection.execute(changes)).one(), (await connection.execute(stops)).one()
        return *map(int, (first[0], first[1] or 0)), *map(int, (second[0], second[1] or 0))

    async def rows(self, files: Sequence[Experiment]) -> Rows:
        """Rows of experiments, those made over HTTP and the given ones of the configuration; rows of stops."""
        wanted = (E.source == API) | E.id.in_([one.id for one in files])
        async with self.database.reading() as connection:
            rows = (await connection.execute(select(EXPERIMENTS).where(wanted))).mappings().all()
            stops = (await connection.execute(select(STOPS))).mappings().all()
        return [dict(row) for row in rows], [dict(row) for row in stops]

    async def one(self, id: str) -> Experiment | None:
        """An experiment by id, even if it is no longer in the configuration."""
        async with self.database.reading() as connection:
            row = (await connection.execute(select(EXPERIMENTS).where(E.id == id))).mappings().first()
            stops = (await connection.execute(select(STOPS).where(STOPS.c.experiment == id))).mappings().all()
        return None if row is None else experiment_of(dict(row), [dict(one) for one in stops])

    async def create(self, name: str, definition: Definition) -> str:
        """The new experiment's id.  Raises Conflict if the name is taken, and BadCall if there are too many."""
        id, now = new_id(PREFIX), self.now()
        made = Experiment(id, name, "draft", definition, API)
        try:
            async with self.database.writing() as connection:
                there = (await connection.execute(select(E.id).where(E.source == API))).all()
                if len(there) >= MOST:
                    raise BadCall(f"There are {MOST} experiments; delete one first.", code="too_many_experiments")
                await connection.execute(insert(EXPERIMENTS).values(row_of(made) | {"created": now, "updated": now}))
        except IntegrityError:
            raise taken(name) from None
        return id

    async def change(self, was: Experiment, name: str, definition: Definition) -> None:
        """Raises Conflict if it was changed meanwhile, or if the name is taken."""
        new = {**row_of(was), "name": name, "taken": name, "definition": written(definition), "updated": self.now()}
        same = (E.id == was.id) & (E.status == was.status) & (E.definition == written(was.definition))
        try:
            async with self.database.writing() as connection:
                done = await connection.execute(update(EXPERIMENTS).where(same).values(new))
        except IntegrityError:
            raise taken(name) from None
        if not done.rowcount:
            raise Conflict("The experiment has just been changed by somebody else.", code="experiment_changed")

    async def move(self, id: str, status: str, before: Sequence[str]) -> bool:
        """Set the status if it is one of `before`; False if it is not."""
        now = self.now()
        new: dict[str, Any] = {"status": status, "updated": now}
        new |= {"stopped": now} if status == "stopped" else {}
        was = (E.id == id) & E.status.in_(before) & (E.source == API)
        async with self.database.writing() as connection:
            done = await connection.execute(update(EXPERIMENTS).where(was).values(new))
            if done.rowcount and status == "active":
                await connection.execute(update(EXPERIMENTS).where(E.id == id, E.started == 0).values(started=now))
        return bool(done.rowcount)

    async def remove(self, id: str) -> None:
        """Delete an experiment and its figures."""
        for table in PARTS:
            await clear(self.database, table, table.c.experiment == id)
        await clear(self.database, EXPERIMENTS, E.id == id)

    async def stop(self, id: str, variant: str, why: str) -> bool:
        """Stop a variant; False if it was already stopped."""
        row = {"experiment": id, "variant": variant, "at": self.now(), "why": why}
        async with self.database.writing() as connection:
            done = await connection.execute(self.database.insert(STOPS).values(row).on_conflict_do_nothing())
        return bool(done.rowcount)


async def clear(database: Database, table: Table, which: ColumnElement[bool]) -> int:
    """Delete these rows in small transactions, so that nothing waits long; returns the count.  Raises DatabaseAway."""
    keys, whole = list(table.primary_key.columns), 0
    key = keys[0] if len(keys) == 1 else tuple_(*keys)
    some = select(*keys).where(which).limit(CHUNK)
    while True:
        async with database.writing() as connection:
            gone = (await connection.execute(delete(table).where(key.in_(some)))).rowcount
        whole += gone
        if gone < CHUNK:
            return whole


def together(files: Sequence[Experiment], rows: Rows) -> list[Experiment]:
    """All experiments; those of the configuration replace others with the same name."""
    known, stops = {row["id"]: row for row in rows[0]}, rows[1]
    mine = {one.name: {**known.get(one.id, {}), **row_of(one)} for one in files}
    others = [row for row in known.values() if row["source"] == API and row["name"] not in mine]
    made = [experiment_of(row, stops) for row in (*mine.values(), *others)]
    return [one for one in made if one is not None]


def taken(name: str) -> Conflict:
    return Conflict(f"There is an experiment '{name}' already.", param="name", code="experiment_exists")


def written(definition: Definition) -> str:
    return orjson.dumps(definition.as_json(), option=orjson.OPT_SORT_KEYS).decode()


def row_of(one: Experiment) -> dict[str, Any]:
    return {
        "id": one.id,
        "name": one.name,
        "taken": one.name if one.source == API else None,
        "source": one.source,
        "status": one.status,
        "definition": written(one.definition),
    }


def experiment_of(row: Mapping[str, Any], stops: Iterable[Mapping[str, Any]]) -> Experiment | None:
    """None if this version of the server does not accept the definition, which another version wrote."""
    try:
        definition = Definition.model_validate(orjson.loads(row["definition"]))
    except ValidationError as error:
        log.error("the experiment '%s' was written for another version of this server: %s", row["name"], error)
        return None
    mine = {one["variant"]: Stop(one["at"] / MICRO, one["why"]) for one in stops if one["experiment"] == row["id"]}
    times = [row.get(name, 0) / MICRO for name in ("created", "started", "stopped")]
    return Experiment(row["id"], row["name"], row["status"], definition, row["source"], mine, *times)
