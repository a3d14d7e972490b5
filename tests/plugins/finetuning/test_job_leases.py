"""A job is run by one process only, and each server runs a limited number of trainings."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from plugins.finetuning import caller_data, job_leases, runner, shapes
from plugins.finetuning.events import Events
from plugins.finetuning.job_leases import LEASE, SILENT, JobLeases
from plugins.finetuning.store import Job, Store
from plugins.finetuning.tables import FEATURE
from proxy.errors import BadCall, NotFound
from proxy.sql.database import Database
from tests.clocks import Watch

JOB: dict[str, Any] = {"owner": "alice", "model": "demo", "trainer": "small", "training_file": "file-1", "hyper": "{}"}


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    database = Database(database_url, 5, 5)
    await database.migrate(FEATURE)
    yield Store(database, Watch(), 5)
    await database.aclose()


def leases_of(store: Store, process: str, server: str = "s1", at_once: int = 1) -> JobLeases:
    """The job leases of another machine, whose processes cannot be seen from here."""
    made = JobLeases(store, Events(store), server, at_once)
    made.holder.here, made.holder.name = f"{process}:", f"{process}:1:{server}"
    return made


async def queued(store: Store, *ids: str) -> None:
    first = leases_of(store, "reader")
    for id in ids:
        await store.add({**JOB, "id": id, "tuned": id})
        job = await first.claim("validating_files", ["small"])
        assert job is not None and await first.release(job, "queued")


async def claimed(one: JobLeases) -> str | None:
    job = await one.claim("queued", ["small"])
    return None if job is None else job.id


async def test_a_server_runs_one_training_at_a_time_across_its_processes(store: Store) -> None:
    await queued(store, "a", "b", "c")
    first, second, other = leases_of(store, "p1"), leases_of(store, "p2"), leases_of(store, "p3", "s2")
    assert await claimed(first) == "a"
    assert await claimed(second) is None and await claimed(first) is None
    assert await claimed(other) == "b"
    assert await claimed(leases_of(store, "p2", at_once=2)) == "c"
    assert await first.claim("queued", ["large"]) is None


async def test_a_job_whose_lease_expired_is_taken_over_by_another_process(store: Store) -> None:
    await queued(store, "a")
    first, second = leases_of(store, "p1"), leases_of(store, "p2")
    job = await first.claim("queued", ["small"])
    assert job is not None and await first.tell(job, starts=1)
    assert isinstance(store.clock, Watch)
    store.clock.move(LEASE + 1)
    assert await claimed(second) is None, "the clock may have been changed"
    store.clock.move(SILENT)
    taken = await second.claim("queued", ["small"])
    assert isinstance(taken, Job) and (taken.id, taken.starts) == ("a", 1)
    assert not await first.tell(job) and not await first.end(job, "succeeded", "Done.")
    assert await second.end(taken, "succeeded", "Done.") and await claimed(first) is None


async def test_a_clock_set_forward_takes_no_job_from_a_live_process(store: Store) -> None:
    await queued(store, "a", "b")
    first, second = leases_of(store, "p1"), leases_of(store, "p2")
    job = await first.claim("queued", ["small"])
    assert job is not None and isinstance(store.clock, Watch)
    for _ in range(3):
        store.clock.move(LEASE + 1)
        assert await claimed(second) is None, "nor may another training start beside it"
        assert await first.tell(job)


async def test_a_process_does_not_claim_a_job_that_it_is_running(store: Store) -> None:
    await queued(store, "a")
    first = leases_of(store, "p1")
    assert await claimed(first) == "a"
    assert isinstance(store.clock, Watch)
    store.clock.move(LEASE + 1)
    assert await first.claim("queued", ["small"], {"a"}) is None
    assert await claimed(first) == "a"


async def test_running_trainings_do_not_hide_claimable_jobs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_leases, "SOME", 2)
    store.most_open = 9
    await queued(store, "a", "b", "c", "d", "e")
    here, dead = JobLeases(store, Events(store), "s1", 9), JobLeases(store, Events(store), "s2", 9)
    living = JobLeases(store, Events(store), "s3", 9)
    living.holder.name = f"{living.holder.here}{os.getppid()}:s3"
    assert [await claimed(one) for one in (living, living, living)] == ["a", "b", "c"]
    dead.holder.name = f"{dead.holder.here}{os.getpid()}:s2"
    assert await claimed(dead) == "d"
    assert [await claimed(here) for _ in range(3)] == ["d", "e", None], "and only those jobs that no process runs"


async def test_a_cancelled_job_is_not_claimed(store: Store) -> None:
    await queued(store, "a")
    first = leases_of(store, "p1")
    job = await first.claim("queued", ["small"])
    assert job is not None
    await leases_of(store, "p9").cancel("alice", "a")
    assert not await first.tell(job) and not await first.release(job, "queued")
    with pytest.raises(BadCall, match="its status is 'cancelled'"):
        await leases_of(store, "p9").cancel("alice", "a")
    with pytest.raises(NotFound):
        await leases_of(store, "p9").cancel("bob", "a")


async def test_unfinished_jobs_per_caller_are_limited(store: Store) -> None:
    await queued(store, *"abcde")
    with pytest.raises(BadCall) as found:
        await store.add({**JOB, "id": "f"})
    assert found.value.code == "too_many_jobs" and await store.owned("alice", 10) != []
    await store.add({**JOB, "id": "g", "owner": "bob"})
    await leases_of(store, "p9").cancel("alice", "a")
    await store.add({**JOB, "id": "f"})


async def test_unfinished_jobs_per_caller_are_limited_for_concurrent_requests_too(store: Store) -> None:
    asked = (store.add({**JOB, "id": id}) for id in "abcdefghijkl")
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(one) for one in found].count(BadCall) == 7 and len(await store.owned("alice", 20)) == 5


async def test_jobs_with_a_model_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugins.finetuning.store.MOST", 1)
    one = leases_of(store, "p1")
    await queued(store, "a", "b", "c")
    job = await one.claim("queued", ["small"])
    assert job is not None and await one.end(job, "succeeded", "Done.")
    for id in "bc":
        await one.cancel("alice", id)
    await store.add({**JOB, "id": "d"})
    assert {job.id for job in await store.owned("alice", 10)} == {"a", "c", "d"}
    await store.deleted(job)
    await store.add({**JOB, "id": "e"})
    assert {job.id for job in await store.owned("alice", 10)} == {"c", "d", "e"}


async def test_a_job_deleted_during_an_export_does_not_affect_the_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller_data, "CHUNK", 1)
    for id in "abc":
        await store.add({**JOB, "id": id, "metadata": "{}"})
    runner: Any = None  # neither the leases nor a host is asked
    told = caller_data.CallerJobs(store, Events(store), runner, runner).export("alice")
    first = await anext(told)
    assert first["id"] == "c" and await store.remove("alice", ["c"]) == 1
    assert [one["id"] async for one in told] == ["b", "a"]


async def test_an_absurd_number_of_steps_can_be_serialised(store: Store) -> None:
    await queued(store, "a")
    job = await leases_of(store, "p1").claim("queued", ["small"])
    assert job is not None
    told = shapes.job(job._replace(began=1, done=1, total=2**62, metadata="{}"), 2**50)
    assert orjson.dumps(told) and told["estimated_finish"] == (2**50 + 10**15) // 1_000_000


def test_a_folder_deleted_while_it_is_measured_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ftjob-1").mkdir()
    found = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, which: [*found(self, which), self / "gone"])
    assert runner.swept(tmp_path) == ["ftjob-1", "gone"]
