"""Jobs that index documents: retries, progress, cancellation, and documents that are indexed as a whole or not."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from sqlalchemy import update

from plugins.documents import index_upkeep, ingest, runner
from plugins.documents.job_queue import LEASE, SILENT, Job, JobQueue
from plugins.documents.repair import Repair
from plugins.documents.store import Item
from plugins.documents.tables import JOBS
from proxy.errors import BadCall
from proxy.sql.database import Database
from proxy.stores.lance import Lance
from proxy.stores.vectors import Row, VectorsAway
from proxy.upstreams.demo import Fault, Simulator
from tests.clocks import Watch
from tests.conftest import Running, Start
from tests.plugins.documents.asking import TEXTS, A, B, add, ask, config, fill, titles
from tests.whole.commands import served

WHO = "Who was the keeper of the lantern?"
STALL = Fault("stall", path="/api/embed", times=100)


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(40):
        while not await true():  # noqa: ASYNC110  (there is no event)
            await asyncio.sleep(0.02)


async def contents(run: Running) -> set[str]:
    told = await ask(run, "POST", "/search", query=WHO)
    return {one["content"] for one in told["results"]}


async def test_embedding_is_retried_while_the_model_fails(
    start: Start, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "PAUSES", (0.01, 0.01, 0.01))
    ollama = Simulator(faults=[Fault("status", status=503, path="/api/embed", times=3)])
    async with start(config(database_url, tmp_path), ollama) as run:
        await add(run, "Lanterns", TEXTS["Lanterns"])
        ollama.faults.append(Fault("status", status=503, path="/api/embed", times=4))
        told = await ask(run, "POST", "/documents", A, title="Clocks", content=TEXTS["Clocks"], wait=30)
        assert told["status"] == "failed" and told["error"] and told["searched_version"] is None
        assert await titles(run, WHO) == ["Lanterns"]
        await check_added_again(run)


FULL = "lance error: LanceError(IO): No space left on device (os error 28), /srv/secret/place/structural.rs:191:9"


async def test_documents_waiting_for_a_full_disk_show_the_reason_which_is_logged_once(
    start: Start, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create = Lance.create
    room = asyncio.Event()

    async def created(self: Lance, name: str, dimensions: int) -> Any:
        if not room.is_set():
            raise RuntimeError(FULL)
        return await create(self, name, dimensions)

    async def all_have(run: Running, status: str, error: str | None) -> bool:
        """Whether every document and job with this status, and every running or done one, has this error."""
        listed = (await ask(run, "GET", "/documents"))["data"] + (await ask(run, "GET", "/jobs"))["data"]
        return {one["error"] for one in listed if one["status"] in (status, "running", "done")} == {error}

    monkeypatch.setattr(Lance, "create", created)
    monkeypatch.setattr(runner, "PAUSES", (0.01,) * 2000)
    why = "The index of texts failed: No space left on device"
    async with start(config(database_url, tmp_path)) as run:
        for title in ("Lanterns", "Clocks"):
            await ask(run, "POST", "/documents", A, 202, title=title, content=TEXTS[title], wait=0)
        await until(lambda: all_have(run, "pending", why))
        room.set()
        await until(lambda: all_have(run, "ready", None))
        assert await contents(run) == {TEXTS["Lanterns"], TEXTS["Clocks"]}
        lines = [one.getMessage() for one in caplog.records if "space" in one.getMessage()]
        assert len(lines) == 1 and FULL in lines[0]


async def test_a_document_that_can_never_be_indexed_fails_with_the_reason(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def created(self: Lance, name: str, dimensions: int) -> Any:
        raise OSError("Unable to created lance dataset at /srv/secret: Permission denied (os error 13)")

    monkeypatch.setattr(Lance, "create", created)
    monkeypatch.setattr(runner, "PAUSES", (0.01,))
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        told = await ask(run, "POST", "/documents", A, title="T", content=TEXTS["Clocks"], wait=30)
        assert (told["status"], told["error"]) == ("failed", "The index of texts failed: Permission denied")


async def check_added_again(run: Running) -> None:
    """Check that a failed document is retried when it is sent again."""
    told = await ask(run, "POST", "/documents", A, 200, title="Clocks", content=TEXTS["Clocks"], wait=30)
    assert told["status"] == "ready" and told["duplicate"]


async def test_the_runner_survives_an_unexpected_exception(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, odd = JobQueue.claim, [RuntimeError("odd")]

    async def claimed(self: JobQueue, *given: Any, **named: Any) -> Job | None:
        if odd:
            raise odd.pop()
        return await claim(self, *given, **named)

    monkeypatch.setattr(JobQueue, "claim", claimed)
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        await add(run, "Lanterns", TEXTS["Lanterns"])
        assert not odd


async def test_a_table_that_cannot_be_optimised_does_not_block_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    both, tended = asyncio.Event(), list[str]()

    class Odd(Lance):
        async def tend(self, table: str) -> None:
            tended.append(table)
            if table == "odd":
                raise RuntimeError("odd")
            both.set()

    monkeypatch.setattr(index_upkeep, "EVERY", 0)
    upkeep = index_upkeep.IndexUpkeep(Odd("nowhere"), Watch())
    upkeep.note("odd", index_upkeep.ROWS)
    upkeep.note("even", index_upkeep.ROWS)
    running = asyncio.ensure_future(upkeep.run())
    async with asyncio.timeout(10):
        await both.wait()
    running.cancel()
    assert tended == ["odd", "even"]


async def test_a_permanent_failure_has_its_reason(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path)) as run:
        told = await ask(run, "POST", "/documents", A, title="T", content=" \n---\n ", wait=30)
        assert (told["status"], told["error"]) == ("failed", "There is no text in it.")
        assert await titles(run, "text") == []


async def test_a_chunk_too_long_for_the_model_is_embedded_in_halves(start: Start, tmp_path: Path) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path, chunk=8000)) as run:
        letters = " ".join("abcdefgh"[number % 8] for number in range(3800))
        told = await add(run, "Letters", letters + " zirconium")
        assert told["chunks"] == 1 and await titles(run, "zirconium") == ["Letters"]


async def test_a_collections_table_is_created_by_one_process_at_a_time(
    start: Start, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone: Callable[..., AbstractAsyncContextManager[None]] = Database.alone
    named: list[str] = []

    def noted(self: Database, name: str) -> AbstractAsyncContextManager[None]:
        named.append(name)
        return alone(self, name)

    monkeypatch.setattr(Database, "alone", noted)
    async with start(config(database_url, tmp_path)) as run:
        for title in ("Lanterns", "Clocks"):
            await add(run, title, TEXTS[title])
    assert named == list(await Lance(str(tmp_path / "lance")).tables())


async def test_progress_is_reported_until_the_end(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path, chunk=200)) as run:
        text = "\n\n".join(f"Paragraph {number} of a long text, which has its own words." for number in range(4000))
        told = await ask(run, "POST", "/documents", A, 202, title="Long", content=text, wait=0)
        assert told["status"] == "pending"
        headers = {**A, "Accept": "text/event-stream"}
        async with run.http.get(f"{run.url}/api/rag/jobs/{told['job_id']}", headers=headers) as response:
            assert response.headers["Content-Type"] == "text/event-stream"
            lines = (await response.text()).split("\n\n")
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        shares = [one["progress"] for one in events]
        assert shares == sorted(shares) and shares[-1] == 1 and any(0 < one < 1 for one in shares)
        assert (events[-1]["status"], events[-1]["total"]) == ("done", len(text))
        (job,) = (await ask(run, "GET", "/jobs"))["data"]
        assert job["status"] == "done" and (await ask(run, "GET", "/jobs", B))["data"] == []
        assert (await ask(run, "DELETE", f"/jobs/{job['job_id']}", A, 400))["error"]["code"] == "job_ended"
        found = await ask(run, "POST", "/search", query="paragraph 2345", top_k=1)
        assert "Paragraph 2345 " in found["results"][0]["content"]


async def test_a_cancelled_job_leaves_nothing(start: Start, database_url: str, tmp_path: Path) -> None:
    ollama = Simulator(faults=[STALL])
    async with start(config(database_url, tmp_path), ollama) as run:
        told = await ask(run, "POST", "/documents", A, 202, title="Lanterns", content=TEXTS["Lanterns"], wait=0)
        await ollama.until(lambda: ollama.calls["/api/embed"] > 0)
        await ask(run, "DELETE", f"/jobs/{told['job_id']}", A, 200)
        failed = await ask(run, "GET", f"/documents/{told['document_id']}")
        assert (failed["status"], failed["error"]) == ("failed", "cancelled")
        ollama.faults.clear()
        again = await ask(run, "POST", "/documents", A, 200, title="Lanterns", content=TEXTS["Lanterns"], wait=30)
        assert again["status"] == "ready" and await titles(run, WHO) == ["Lanterns"]


async def test_rows_of_a_document_that_failed_halfway_do_not_displace_results(
    start: Start, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_rows, ollama = Lance.add, Simulator()

    async def added(self: Lance, table: str, rows: Sequence[Row], *given: Any) -> None:
        await add_rows(self, table, rows, *given)
        if len(rows) == 100:
            ollama.faults.append(Fault("status", status=400, path="/api/embed", times=100))

    monkeypatch.setattr(ingest, "ROWS", 100)
    monkeypatch.setattr(runner, "PAUSES", ())
    monkeypatch.setattr(Lance, "add", added)
    async with start(config(database_url, tmp_path, chunk=200), ollama) as run:
        await add(run, "Lanterns", TEXTS["Lanterns"])
        text = "\n\n".join(f"{WHO} {WHO} {WHO} {WHO} {number}" for number in range(150))
        told = await ask(run, "POST", "/documents", A, title="Many", content=text, wait=30)
        assert told["status"] == "failed"
        ollama.faults.clear()
        assert await titles(run, WHO) == ["Lanterns"]


async def test_a_failure_after_another_process_finished_the_job_deletes_nothing(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example after the machine was suspended."""
    fill_in, fail, failed = ingest.Ingest.text, runner.Runner.failed, asyncio.Event()

    async def filled(self: ingest.Ingest, *given: Any) -> None:
        await fill_in(self, *given)
        monkeypatch.setattr(ingest.Ingest, "text", fill_in)
        await done(self, given[0].job, given[1])
        raise BadCall("odd")

    async def done(self: ingest.Ingest, job: Job, item: Item) -> None:
        """Finish the job, as another process would."""
        mine, self.job_queue.name = self.job_queue.name, "another"
        async with self.store.database.writing() as connection:
            await connection.execute(update(JOBS).where(JOBS.c.id == job.id).values(holder="another"))
        await self.run(job, item, await self.collections.one(item.owner, item.collection))
        self.job_queue.name = mine

    async def noted(self: runner.Runner, *given: Any) -> None:
        await fail(self, *given)
        failed.set()

    monkeypatch.setattr(ingest.Ingest, "text", filled)
    monkeypatch.setattr(runner.Runner, "failed", noted)
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        await add(run, "Lanterns", TEXTS["Lanterns"])
        await failed.wait()
        assert await titles(run, WHO) == ["Lanterns"]


async def test_rows_of_a_document_still_being_added_do_not_displace_results(
    start: Start, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_rows, ollama = Lance.add, Simulator()
    go, half = asyncio.Event(), asyncio.Event()

    async def added(self: Lance, table: str, rows: Sequence[Row], *given: Any) -> None:
        await add_rows(self, table, rows, *given)
        if len(rows) == 200:
            half.set()
            await go.wait()

    monkeypatch.setattr(ingest, "ROWS", 200)
    monkeypatch.setattr(Lance, "add", added)
    async with start(config(database_url, tmp_path, chunk=200), ollama) as run:
        await add(run, "Lanterns", TEXTS["Lanterns"])
        text = "\n\n".join(f"{WHO} {WHO} {WHO} {WHO} {number}" for number in range(250))
        await ask(run, "POST", "/documents", A, 202, title="Many", content=text, wait=0)
        await half.wait()
        assert await titles(run, WHO) == ["Lanterns"]
        go.set()
        await until(lambda: found(run, ["Many"] * 5))


async def test_a_server_does_not_restart_its_own_job_after_the_lease_expired(
    start: Start, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example after the machine was suspended, or while the database was down."""
    begin, begun = runner.Runner.begin, list[str]()

    def noted(self: runner.Runner, job: Job) -> None:
        begun.append(job.item)
        begin(self, job)

    monkeypatch.setattr(runner.Runner, "begin", noted)
    ollama = Simulator(faults=[STALL])
    async with start(config(database_url, tmp_path), ollama) as run:
        first = await ask(run, "POST", "/documents", A, 202, title="Lanterns", content=TEXTS["Lanterns"], wait=0)
        await ollama.until(lambda: ollama.calls["/api/embed"] > 0)
        run.server.services.clock.time = lambda: time.time() + 2 * LEASE
        second = await ask(run, "POST", "/documents", A, 202, title="Clocks", content=TEXTS["Clocks"], wait=0)
        async with asyncio.timeout(40):
            while second["document_id"] not in begun:  # noqa: ASYNC110  (there is no event)
                await asyncio.sleep(0.02)
        assert begun == [first["document_id"], second["document_id"]]


async def test_late_clean_up_of_a_cancelled_job_does_not_delete_a_new_upload(
    start: Start, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, ready, cleared = Lance.remove, asyncio.Event(), asyncio.Event()

    async def removed(self: Lance, table: str, document: str, first: int = 0, until: int | None = None) -> None:
        late = (first, until) == (1, 2)
        if late:
            await ready.wait()
        await remove(self, table, document, first, until)
        if late:
            cleared.set()

    monkeypatch.setattr(Lance, "remove", removed)
    ollama = Simulator(faults=[STALL])
    async with start(config(database_url, tmp_path), ollama) as run:
        told = await ask(run, "POST", "/documents", A, 202, title="Lanterns", content=TEXTS["Lanterns"], wait=0)
        await ollama.until(lambda: ollama.calls["/api/embed"] > 0)
        await ask(run, "DELETE", f"/jobs/{told['job_id']}", A, 200)
        ollama.faults.clear()
        again = await ask(run, "POST", "/documents", A, 200, title="Lanterns", content=TEXTS["Lanterns"], wait=30)
        assert again["status"] == "ready"
        ready.set()
        await cleared.wait()
        assert await titles(run, WHO) == ["Lanterns"]


async def test_clean_up_after_a_cancellation_is_completed_even_if_slow(
    start: Start, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, progress, ollama = Lance.remove, JobQueue.progress, Simulator(faults=[STALL])
    clearing, beaten, ready, cleared = (asyncio.Event() for _ in range(4))

    async def removed(self: Lance, *given: Any) -> None:
        clearing.set()
        await ready.wait()
        await remove(self, *given)
        cleared.set()

    async def noted(self: JobQueue, *given: Any) -> bool:
        if not (mine := await progress(self, *given)):
            beaten.set()
        return mine

    monkeypatch.setattr(runner, "LEASE", 0.03)
    monkeypatch.setattr(Lance, "remove", removed)
    monkeypatch.setattr(JobQueue, "progress", noted)
    async with start(config(database_url, tmp_path), ollama) as run, asyncio.timeout(40):
        told = await ask(run, "POST", "/documents", A, 202, title="Lanterns", content=TEXTS["Lanterns"], wait=0)
        await ollama.until(lambda: ollama.calls["/api/embed"] > 0)
        await ask(run, "DELETE", f"/jobs/{told['job_id']}", A, 200)
        await clearing.wait()
        beaten.clear()
        await beaten.wait()
        ready.set()
        await cleared.wait()


async def test_a_failed_document_is_retried_when_it_is_put_again(
    start: Start, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "PAUSES", ())
    ollama = Simulator(faults=[Fault("status", status=400, path="/api/embed", times=1)])
    async with start(config(database_url, tmp_path), ollama) as run:
        told = await ask(run, "POST", "/documents", A, title="Clocks", content=TEXTS["Clocks"], wait=30)
        assert told["status"] == "failed"
        path = f"/documents/{told['document_id']}"
        assert (await ask(run, "PUT", path, A, 200, metadata={"year": 1}))["status"] == "failed"
        assert (await ask(run, "PUT", path, A, 200, content=TEXTS["Clocks"], wait=30))["status"] == "ready"
        assert await titles(run, "clock") == ["Clocks"]


async def test_a_restarted_server_continues_its_jobs(start: Start, database_url: str, tmp_path: Path) -> None:
    text = config(database_url, tmp_path)
    ollama = Simulator(faults=[STALL])
    async with start(text, ollama) as run:
        told = await ask(run, "POST", "/documents", A, 202, title="Lanterns", content=TEXTS["Lanterns"], wait=0)
        await ollama.until(lambda: ollama.calls["/api/embed"] > 0)
    async with start(text) as run:
        await until(lambda: found(run, ["Lanterns"]))
        assert (await ask(run, "GET", f"/documents/{told['document_id']}"))["status"] == "ready"


async def test_the_index_is_repaired_from_the_database(start: Start, database_url: str, tmp_path: Path) -> None:
    text = config(database_url, tmp_path)
    async with start(text) as run:
        ids = await fill(run)
        (collection,) = (await ask(run, "GET", "/collections"))["data"]
        table, dimensions = collection["id"], collection["dimensions"]
    index = Lance(str(tmp_path / "lance"))
    await index.remove(table, ids["Lanterns"])  # as if lost in a power cut
    stray = Row("doc_of_nobody", 1, 0, "Lanterns\n\nThe keeper of the lantern is a ghost.", "[0,1,10,0,[]]")
    half = Row(ids["Clocks"], 2, 0, "Clocks\n\nThe keeper of the lantern is a clock.", "[0,1,8,0,[]]")
    await index.add(table, [stray, half], np.eye(2, dimensions, dtype=np.float32))
    async with start(text) as run:
        assert await contents(run) <= set(TEXTS.values())
        await until(lambda: everything(run))
        await until(lambda: three(index, table))
    await index.drop(table)
    async with start(text) as run:
        await until(lambda: everything(run))
    await index.aclose()


async def test_an_index_unavailable_at_the_start_is_repaired_later(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = config(f"sqlite:///{tmp_path}/x.db", tmp_path)
    async with start(text) as run:
        await fill(run)
        (collection,) = (await ask(run, "GET", "/collections"))["data"]
    index, repaired, times = Lance(str(tmp_path / "lance")), Repair.run, 0
    await index.drop(collection["id"])
    await index.aclose()

    async def away_at_first(self: Repair) -> int:
        nonlocal times
        times += 1
        if times == 1:
            raise VectorsAway("away")
        return await repaired(self)

    monkeypatch.setattr(Repair, "run", away_at_first)
    monkeypatch.setattr("plugins.documents.plugin.SWEEP", 0.05)
    async with start(text) as run:
        await until(lambda: everything(run))


async def found(run: Running, expected: list[str]) -> bool:
    return await titles(run, WHO) == expected


async def everything(run: Running) -> bool:
    return await contents(run) == set(TEXTS.values())


async def three(index: Lance, table: str) -> bool:
    return len(await index.counts(table)) == 3


@pytest.mark.slow
async def test_killed_servers_lose_no_document_and_show_none_in_part(tmp_path: Path) -> None:
    """Each round adds documents until the process is killed; all acknowledged ones are complete at the end."""
    assert await kill(tmp_path, rounds=1) > 0


async def kill(folder: Path, rounds: int) -> int:
    """Kill the server at a random moment; the number of documents that were acknowledged."""
    file = folder / "proxy.yaml"
    more = "upstreams: {local: {demo: {}}}\nlisten: {port: 0}\n"
    file.write_text(config(f"sqlite:///{folder}/x.db", folder, more, chunk=200))
    acknowledged: dict[str, str] = {}
    for turn in range(rounds):
        async with served("serve", "--config", str(file)) as server:
            adding = asyncio.ensure_future(adds(server.url, turn, acknowledged))
            await until(lambda turn=turn: begun(acknowledged, turn))  # type: ignore[misc]
            await asyncio.sleep(turn % 7 / 20)
            server.process.kill()
            await asyncio.gather(adding, return_exceptions=True)
    assert acknowledged
    async with served("serve", "--config", str(file)) as server, aiohttp.ClientSession(headers=A) as http:
        async with asyncio.timeout(90):
            for id, name in acknowledged.items():
                await whole(http, f"{server.url}/api/rag/documents/{id}", name)
        stats = await (await http.get(f"{server.url}/api/rag/stats")).json()
        assert stats["collections"][0]["pending"] == stats["collections"][0]["failed"] == 0
        index = Lance(str(folder / "lance"))
        await until(lambda: complete(index, stats))
        await index.aclose()
    return len(acknowledged)


async def begun(acknowledged: dict[str, str], turn: int) -> bool:
    return any(name.startswith(f"text{turn}x") for name in acknowledged.values())


def lines(name: str) -> str:
    return "\n\n".join(f"Line {number} of {name} has some words in it, and a dot at its end." for number in range(40))


async def adds(url: str, turn: int, acknowledged: dict[str, str]) -> None:
    async with aiohttp.ClientSession(headers=A) as http:
        for number in range(10_000):
            name = f"text{turn}x{number}"
            body = {"title": name, "content": lines(name), "wait": 0}
            async with http.post(f"{url}/api/rag/documents", json=body) as response:
                acknowledged[(await response.json())["document_id"]] = name


async def whole(http: aiohttp.ClientSession, url: str, name: str) -> None:
    while (told := await (await http.get(url)).json())["status"] == "pending":  # noqa: ASYNC110  (there is no event)
        await asyncio.sleep(0.05)
    assert (told["status"], told["title"]) == ("ready", name)
    assert await (await http.get(f"{url}/content")).text() == lines(name)


async def complete(index: Lance, stats: Any) -> bool:
    counts = await index.counts(stats["collections"][0]["id"])
    return (sum(counts.values()), len(counts)) == (stats["chunks"], stats["documents"])


async def test_a_process_with_a_fast_clock_takes_no_job_from_a_live_one(
    start: Start, database_url: str, tmp_path: Path
) -> None:
    ollama = Simulator(faults=[STALL])
    async with start(config(database_url, tmp_path), ollama) as run:
        await ask(run, "POST", "/documents", A, 202, title="Lanterns", content=TEXTS["Lanterns"], wait=0)
        await ollama.until(lambda: ollama.calls["/api/embed"] > 0)
        watch = Watch(time.time() + 3600)
        ahead = JobQueue(run.server.services.state["database"], watch, "another")
        ahead.holder.here = "elsewhere:"
        assert await ahead.claim() is None
        watch.move(SILENT)
        assert await ahead.claim() is not None, "the job was not touched meanwhile"
