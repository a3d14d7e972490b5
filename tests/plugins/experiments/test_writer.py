"""Outcomes of calls are written once and bounded, and failures to write them do no harm."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.experiments.assigning import Subject, subject
from plugins.experiments.batch import Batch
from plugins.experiments.definition import Definition, InFile
from plugins.experiments.guarding import Guarding
from plugins.experiments.index import Assigned, Experiment
from plugins.experiments.measured import Measured
from plugins.experiments.registry import ExperimentRegistry
from plugins.experiments.results import SHARED, UNFAIR, Results, results
from plugins.experiments.retention import GONE, Retention
from plugins.experiments.statistics import Moments
from plugins.experiments.store import Store, from_file
from plugins.experiments.tables import BATCHES, CALLS, EXPERIMENTS, FEATURE, UNITS
from plugins.experiments.writer import LATE, Writer
from proxy.announcements import CallEnded, Cost, Rated
from proxy.sql.database import Database, DatabaseAway
from tests.clocks import Watch
from tests.plugins.experiments.asking import TONE

TWO = {"variants": [{"name": "a"}, {"name": "b"}]}


def experiment(**fields: Any) -> Experiment:
    return from_file("one", InFile.model_validate({**TWO, **fields}))


@pytest.fixture
async def writer(database_url: str) -> AsyncIterator[Writer]:
    database = Database(database_url, 3, 10)
    await database.migrate(FEATURE)
    state: dict[str, Any] = {}
    host: Any = SimpleNamespace(
        database=database, clock=Watch(), process_state=lambda name, make: state.setdefault(name, make())
    )
    writer = Writer(Store(host))
    writer.most, writer.most_units = 10_000, 10_000
    yield writer
    await database.aclose()


def assigned(one: Experiment, who: Subject, variant: str | None = None) -> Assigned:
    made = one.assigned(who)
    assert made is not None
    named = next((each for each in one.definition.variants if each.name == variant), made.variant)
    return Assigned(one, named, who)


def ended(id: str = "req_1", **fields: Any) -> CallEnded:
    told = {"model": "demo", "completion_tokens": 7, "first_ns": 5, "total_ns": 10**9, **fields}
    return CallEnded(id, 1.7e9, "ann", "", "chat", False, "demo", **told)


async def rows(writer: Writer, table: Any) -> list[dict[str, Any]]:
    async with writer.store.database.reading() as connection:
        return [dict(row) for row in (await connection.execute(select(table))).mappings().all()]


async def test_outcomes_of_a_units_calls_are_added_up(writer: Writer) -> None:
    one, who = experiment(), subject("user", "ann", "u")
    mine = assigned(one, who)
    writer.add(mine, ended("req_0"))
    writer.add(mine, ended("req_1", cost=Cost("USD", 30), cache="hit"))
    await writer.flush()
    writer.add(mine, ended("req_2", error="upstream_cut"))
    writer.add(mine, ended("req_3", error="client_left"))
    await writer.flush()
    (row,) = await rows(writer, UNITS)
    assert row == {
        "experiment": one.id, "variant": mine.variant.name, "unit": who.key, "owner": "ann", "calls": 4, "errors": 1,
        "cached": 1, "answered": 2, "total_ns": 2 * 10**9, "begun": 2, "first_ns": 10, "tokens": 14, "priced": 1,
        "cost": 30, "up": 0, "down": 0,
    }  # fmt: skip
    assert len(await rows(writer, CALLS)) == 4 and writer.pending == 0


async def test_a_batch_committed_without_confirmation_is_not_written_twice(writer: Writer) -> None:
    batch = Batch()
    batch.add(assigned(experiment(), subject("user", "ann", "u")), ended())
    await writer.put(batch)
    await writer.put(batch)
    (row,) = await rows(writer, UNITS)
    assert row["calls"] == 1 and len(await rows(writer, CALLS)) == 1


async def test_ratings_can_come_late_and_change_and_the_last_one_counts(writer: Writer) -> None:
    writer.add(assigned(experiment(), subject("user", "ann", "u")), ended())
    await writer.flush()
    for rating, up, down in (("up", 1, 0), ("up", 1, 0), ("down", 0, 1), ("none", 0, 0), ("down", 0, 1)):
        writer.rated(Rated("req_1", "ann", rating))  # type: ignore[arg-type]
        await writer.flush()
        (row,) = await rows(writer, UNITS)
        assert (row["up"], row["down"]) == (up, down)
    writer.rated(Rated("req_1", "bob", "up"))
    writer.rated(Rated("req_2", "ann", "up"))
    await writer.flush()
    assert writer.pending == 2, "another process may have yet to write these calls"
    writer.add(assigned(experiment(), subject("user", "ann", "u")), ended("req_2"))
    await writer.flush()
    assert (await rows(writer, UNITS))[0]["up"] == 1 and writer.pending == 1
    writer.store.host.clock.move(LATE + 1)  # type: ignore[attr-defined]
    await writer.flush()
    assert writer.pending == 0, "the call took part in no experiment"


async def test_units_beyond_the_limit_share_rows(writer: Writer) -> None:
    one, writer.most_units = experiment(), 10
    for start in (0, 8, 16):
        for number in range(start, start + 8):
            who = subject("user", "ann", str(number))
            writer.add(assigned(one, who), ended(f"req_{number}"))
        await writer.flush()
    writer.add(assigned(one, subject("user", "ann", "0")), ended("req_0"))
    await writer.flush()
    found = await rows(writer, UNITS)
    own = [row for row in found if row["owner"]]
    assert len(own) == 8 and sum(row["calls"] for row in found) == 25
    assert {row["calls"] for row in own} == {1, 2}, "a unit with a row of its own keeps it"
    writer.rated(Rated("req_20", "ann", "up"))
    await writer.flush()
    assert sum(row["up"] for row in await rows(writer, UNITS) if not row["owner"]) == 1
    told = (await results(writer.store.database, one)).as_json()
    assert sum(row["units"] for row in told["variants"]) == 8 and told["warnings"] == [SHARED]
    assert sum(row["calls"] for row in told["variants"]) == 25


async def test_pending_rows_are_bounded_while_the_database_is_down(
    writer: Writer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer.most, mine = 3, assigned(experiment(), subject("user", "ann", "u"))
    database = writer.store.database

    @asynccontextmanager
    async def away() -> AsyncIterator[AsyncConnection]:
        async with AsyncExitStack():
            raise DatabaseAway("away")
            yield

    with monkeypatch.context() as patched, caplog.at_level(logging.ERROR):
        patched.setattr(database, "writing", away)
        for number in range(5):
            writer.add(mine, ended(f"req_{number}"))
            with pytest.raises(DatabaseAway):
                await writer.flush()
        writer.rated(Rated("req_0", "ann", "up"))
        assert (writer.pending, writer.lost) == (3, 3)
    assert sum("are lost" in record.message for record in caplog.records) == 1, "logged once a minute"
    await writer.flush()
    assert (await rows(writer, UNITS))[0]["calls"] == 3 and writer.pending == 0


async def test_two_processes_write_concurrently(writer: Writer) -> None:
    other, one = Writer(writer.store), experiment()
    other.most, other.most_units = writer.most, writer.most_units
    for number in range(40):
        who = subject("user", "ann", str(number % 8))
        (writer, other)[number % 2].add(assigned(one, who), ended(f"req_{number}"))
        if number % 10 == 9:
            await asyncio.gather(writer.flush(), other.flush())
    found = await rows(writer, UNITS)
    assert len(found) == 8 and {row["calls"] for row in found} == {5}


def many_calls(one: Experiment, failing: dict[str, int], units: int) -> Batch:
    """Three calls for each of this many units per variant.  failing: the percentage of failing units per variant."""
    batch, given = Batch(), dict.fromkeys(failing, 0)
    for number in range(units * len(failing)):
        name = list(failing)[number % len(failing)]
        given[name] += 1
        error = "upstream_cut" if given[name] % 100 < failing[name] else ""
        for _ in range(3):
            batch.add(assigned(one, subject("user", "ann", str(number)), name), ended(f"req_{number}", error=error))
    return batch


async def test_a_harmful_variant_is_stopped_once_and_logged(writer: Writer, caplog: pytest.LogCaptureFixture) -> None:
    variants = [{"name": "a"}, {"name": "bad"}, {"name": "good"}]
    one = experiment(variants=variants, guard={"metric": "errors", "worse_by": 0.05})
    registry = ExperimentRegistry(writer.store, [one], writer.store.host)
    await registry.read()
    await writer.put(many_calls(one, {"a": 5, "bad": 40, "good": 4}, 400))
    guarding = Guarding(writer.store)
    with caplog.at_level(logging.ERROR):
        assert await guarding.look(one) and await guarding.look(one)
    assert [record.message.partition(": ")[0] for record in caplog.records] == [
        "the variant 'bad' of the experiment 'one' was stopped"
    ]
    await registry.read()
    (found,) = registry.index.active
    assert set(found.stops) == {"bad"} and not await guarding.look(found)
    told = (await results(writer.store.database, found)).as_json()
    assert [row["stopped"] and row["stopped"]["why"].startswith("errors is worse") for row in told["variants"]] == [
        None, True, None,
    ]  # fmt: skip
    assert [row["metrics"]["errors"].get("verdict") for row in told["variants"]] == [
        None, "worse", "no difference seen yet",
    ]  # fmt: skip
    assert told["srm"]["ok"], "the split of the remaining variants"


async def test_a_guard_tolerates_a_smaller_difference(writer: Writer) -> None:
    one = experiment(guard={"metric": "errors", "worse_by": 0.3})
    await writer.put(many_calls(one, {"a": 5, "b": 20}, 400))
    assert not await Guarding(writer.store).look(one)
    bare = experiment()
    assert not await Guarding(writer.store).look(bare)


async def test_a_sample_ratio_mismatch_is_reported(writer: Writer) -> None:
    batch, one = Batch(), experiment()
    for number in range(1000):
        batch.add(assigned(one, subject("user", "ann", str(number)), "a" if number % 5 < 3 else "b"), ended())
    await writer.put(batch)
    told = (await results(writer.store.database, one)).as_json()
    assert not told["srm"]["ok"] and told["warnings"] == [UNFAIR] and told["srm"]["p"] < 1e-4


async def test_sums_computed_by_the_database_are_right(writer: Writer) -> None:
    batch, one = Batch(), experiment()
    for number in range(200):
        for turn in range(1 + number % 3):
            took = 10**9 * (1 + number % 7) + turn
            batch.add(assigned(one, subject("user", "ann", str(number)), "ab"[number % 2]), ended(total_ns=took))
    await writer.put(batch)
    found = (await results(writer.store.database, one)).of("b").of("seconds")
    units = [(sum(1 + n % 7 for _ in range(1 + n % 3)), 1 + n % 3) for n in range(1, 200, 2)]
    assert (found.units, found.n) == (100, sum(n for _, n in units))
    assert found.x == pytest.approx(sum(x for x, _ in units))
    assert found.xn == pytest.approx(sum(x * n for x, n in units))
    assert found.xx == pytest.approx(sum(x * x for x, _ in units))
    assert found.nn == sum(n * n for _, n in units)


@pytest.mark.parametrize(("control", "other", "told"), [(-2.0, -1.0, 0.5), (2.0, 1.0, -0.5), (-1.0, 1.0, 2.0)])
def test_the_relative_difference_has_the_sign_of_the_difference(control: float, other: float, told: float) -> None:
    both = {
        name: Measured(200, 0, 200, {"score": Moments(200, 200 * mean, 200.0, 1e4, 200 * mean, 200.0)})
        for name, mean in (("a", control), ("b", other))
    }
    found = Results(one := experiment(), both).compared(one.definition.variants[1], "score")
    assert found.relative == pytest.approx(told) and found.against is not None
    assert (sum(found.against) > 0) == (told > 0)


async def test_old_rows_are_deleted(writer: Writer) -> None:
    store, one = writer.store, experiment()
    registry = ExperimentRegistry(store, [one], store.host)
    await registry.read()
    for number in range(5):
        writer.add(assigned(one, subject("user", "ann", "u")), ended(f"req_{number}"))
    writer.add(
        assigned(Experiment("exp_gone", "gone", "active", one.definition, "api"), subject("user", "a", "u")), ended()
    )
    await writer.flush()
    store.host.clock.now = 1.7e9  # type: ignore[attr-defined]
    await registry.note()
    await Retention(store, 7, 3).tidy()
    assert len(await rows(writer, CALLS)) == 3, "the newest"
    assert {row["experiment"] for row in await rows(writer, UNITS)} == {one.id}
    assert await rows(writer, BATCHES) == []
    store.host.clock.move(GONE + 1)  # type: ignore[attr-defined]
    await Retention(store, 7, 3).tidy()
    assert await rows(writer, EXPERIMENTS) == [] == await rows(writer, UNITS)


async def test_another_definition_has_separate_results(writer: Writer) -> None:
    one = experiment()
    assert experiment(description="x", traffic=0.5, guard={"worse_by": 1}).id == one.id
    others = [experiment(unit="caller"), experiment(salt="x"), experiment(variants=TONE["variants"])]
    assert len({each.id for each in (one, *others)}) == 4
    await ExperimentRegistry(writer.store, [one], writer.store.host).read()
    await ExperimentRegistry(writer.store, [others[0]], writer.store.host).read()
    assert (
        await ExperimentRegistry(writer.store, [others[0]], writer.store.host).find(one.id)
    ).definition == one.definition


async def test_a_definition_of_another_version_does_not_affect_other_experiments(
    writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    store, made = writer.store, Definition.model_validate(TWO)
    for name in ("old", "new"):
        await store.move(await store.create(name, made), "active", ["draft"])
    async with store.database.writing() as connection:
        await connection.execute(update(EXPERIMENTS).where(EXPERIMENTS.c.name == "old").values(definition="{}"))
    registry = ExperimentRegistry(store, [], store.host)
    await registry.read()
    assert [one.name for one in registry.index.active] == ["new"] and "another version" in caplog.text


async def test_a_reload_while_the_database_is_down_keeps_the_known_experiments(writer: Writer) -> None:
    store = writer.store
    id = await store.create("made", Definition.model_validate(TWO))
    await store.move(id, "active", ["draft"])
    await ExperimentRegistry(store, [], store.host).read()
    assert [one.name for one in ExperimentRegistry(store, [], store.host).index.active] == ["made"]
    same = ExperimentRegistry(store, [from_file("made", InFile.model_validate(TONE))], store.host).index
    assert [one.source for one in same.active] == ["file"], "the name refers to the one in the configuration"
