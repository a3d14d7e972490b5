"""Jobs end properly, whatever happens to their files, their trainer, their server or their hosts."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import update

from plugins.finetuning import runner, trainer, work
from plugins.finetuning.api import Api
from plugins.finetuning.job_leases import JobLeases
from plugins.finetuning.runner import Runner
from plugins.finetuning.store import Job, Store
from plugins.finetuning.tables import JOBS as JOBS_TABLE
from proxy.errors import Busy, UpstreamError
from proxy.types import JSON
from proxy.upstreams.demo import Fault, Simulator, running
from proxy.upstreams.imports import Importer
from tests.conftest import ASK, Running, Start
from tests.plugins.files.asking import OPS, A, B, form
from tests.plugins.finetuning.asking import EXAMPLES, call, config, events, lines, tune, until, upload
from tests.whole.commands import served

JOBS = "/v1/fine_tuning/jobs"


def runner_of(run: Running) -> Runner:
    routes = run.server.live.pipeline.router.routes
    found = next(one.handle.__self__ for one in routes if one.path == JOBS)  # type: ignore[attr-defined]
    assert isinstance(found, Api)
    return found.runner


def alive(process: int) -> bool:
    """Whether the process is running; a zombie is not."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def until_true(true: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110  (there is no event)
            await asyncio.sleep(0.02)


async def noted(note: Path) -> list[int]:
    """The process IDs of the trainer, its child and its grandchild."""
    await until_true(note.exists)
    found: list[int] = json.loads(note.read_text())  # noqa: ASYNC240
    assert all(map(alive, found))
    return found


async def until_dead(processes: list[int]) -> None:
    await until_true(lambda: not any(map(alive, processes)))


async def test_an_invalid_dataset_fails_the_job_naming_its_lines(
    start: Start, database_url: str, tmp_path: Path
) -> None:
    async with start(config(database_url, tmp_path)) as run:
        file = await upload(run, lines([*EXAMPLES, {"messages": []}, {"x\0": 1}]))
        job = await until(run, (await tune(run, file))["id"])
        assert (job["status"], job["error"]["code"], job["error"]["param"]) == (
            "failed",
            "invalid_training_file",
            "training_file",
        )
        assert "2 problems" in job["error"]["message"] and "Line 13: " in job["error"]["message"]
        few = await until(run, (await tune(run, await upload(run, lines(EXAMPLES[:9]))))["id"])
        assert "10 is the least" in few["error"]["message"]
        bad = await upload(run, b"{\n")
        job = await until(run, (await tune(run, validation_file=bad))["id"])
        assert job["error"]["code"] == "invalid_validation_file" and job["finished_at"]
        told = await call(run, "POST", "/api/finetuning/datasets/check", file_id=file)
        assert (told["valid"], told["examples"], told["invalid"]) == (False, 12, 2)
        assert [one["line"] for one in told["problems"]] == [13, 14]


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "llama9"}, 404, "model"),
    ({"model": "demo-embed"}, 400, "model"),
    ({"model": ""}, 400, "model"),
    ({"training_file": "file-x"}, 404, "training_file"),
    ({"validation_file": "file-x"}, 404, "validation_file"),
    ({"suffix": "x" * 65}, 400, "suffix"),
    ({"seed": -1}, 400, "seed"),
    ({"hyperparameters": {"n_epochs": 0}}, 400, "hyperparameters.n_epochs"),
    ({"hyperparameters": {"n_epochs": [1]}}, 400, "hyperparameters.n_epochs"),
    ({"hyperparameters": {"batch_size": 1.5}}, 400, "hyperparameters.batch_size"),
    ({"hyperparameters": {"learning_rate_multiplier": True}}, 400, "hyperparameters.learning_rate_multiplier"),
    ({"method": {"type": "dpo"}}, 400, "method.type"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, 400, "integrations"),
    ({"metadata": {"a": "x" * 513}}, 400, "metadata.a"),
    ({"color": "red"}, 400, "color"),
]


async def test_invalid_jobs_are_refused_when_they_are_created(start: Start, tmp_path: Path) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        file = await upload(run)
        for body, status, param in REFUSED:
            told = await tune(run, file, A, status, **body)
            assert told["error"]["param"] == param, (body, told)
        other = await upload(run, purpose="user_data")
        assert (await tune(run, other, A, 400))["error"]["code"] == "invalid_file_purpose"
        assert (await tune(run, await upload(run, who=B), A, 404))["error"]["code"] == "file_not_found"
        for path in ("?limit=0", "?after=ftjob-1", "?color=1", "/ftjob-1", "/ftjob-1/events", "/ftjob-1/checkpoints"):
            assert "error" in await call(run, "GET", JOBS + path, A, None)
        assert (await call(run, "GET", JOBS))["data"] == []
        assert await call(run, "GET", f"{JOBS}?metadata=null") == {
            "object": "list",
            "data": [],
            "first_id": None,
            "last_id": None,
            "has_more": False,
        }


async def test_other_callers_jobs_are_not_found(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path)) as run:
        jobs = [await until(run, (await tune(run))["id"]) for _ in range(2)]
        id, model = jobs[0]["id"], jobs[0]["fine_tuned_model"]
        for method, path in (
            ("GET", f"/{id}"),
            ("POST", f"/{id}/cancel"),
            ("GET", f"/{id}/events"),
            ("GET", f"/{id}/checkpoints"),
        ):
            for who in (B, OPS):
                assert (await call(run, method, JOBS + path, who, 404))["error"]["code"] == "job_not_found"
        assert (await call(run, "GET", JOBS, B))["data"] == []
        assert (await call(run, "DELETE", f"/v1/models/{model}", B, 404))["error"]["code"] == "model_not_found"
        assert "itself fine-tuned" in (await tune(run, None, A, 400, model=model))["error"]["message"]
        page = await call(run, "GET", f"{JOBS}?limit=1")
        assert page["has_more"] and page["data"][0]["id"] == jobs[1]["id"]
        page = await call(run, "GET", f"{JOBS}?limit=1&after={jobs[1]['id']}")
        assert not page["has_more"] and page["data"][0]["id"] == id
        assert (await call(run, "POST", f"{JOBS}/{id}/cancel", A, 400))["error"]["code"] == "job_over"
        told = (await call(run, "GET", "/api/me/data"))["data"]["fine_tuning"]
        assert [one["id"] for one in told] == [jobs[1]["id"], id] and told[0]["events"]
        assert (await call(run, "DELETE", f"/v1/models/{model}:latest", OPS))["deleted"]  # admins can
        assert (await call(run, "DELETE", "/api/me/data"))["deleted"]["fine_tuning"] == 2
        left = [one["id"] for one in (await call(run, "GET", "/v1/models"))["data"]]
        assert not [name for name in left if name.startswith("ft-")]
        await call(run, "GET", f"{JOBS}/{id}", A, 404)


async def test_fine_tuning_can_be_for_admins_only(start: Start, tmp_path: Path) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path, who="admin")) as run:
        await tune(run, "file-x", A, 403)
        await call(run, "DELETE", "/v1/models/demo", A, 403)
        assert (await until(run, (await tune(run, None, OPS))["id"], who=OPS))["status"] == "succeeded"


FAILING: list[tuple[str, dict[str, Any], str, str]] = [
    ("fail", {}, "training_failed", "status 3: CUDA out of memory"),
    ("dora", {}, "unfit_adapter", "DoRA"),
    ("nothing", {}, "unfit_adapter", "has not written adapter_config.json"),
    ("nothing", {"output": "gguf"}, "unfit_adapter", "0 GGUF files"),
    ("well", {"command": ["/no/such/program"]}, "training_failed", "No such file or directory"),
    ("idle", {"timeout": 0.01}, "training_timeout", "0.01 seconds"),
    ("fill", {}, "training_too_large", "1000000 bytes"),
]


@pytest.mark.parametrize(("how", "told", "code", "why"), FAILING)
async def test_a_failed_training_has_its_reason(
    start: Start, tmp_path: Path, how: str, told: dict[str, Any], code: str, why: str
) -> None:
    settings = config(f"sqlite:///{tmp_path}/x.db", tmp_path, how, told, max_folder_bytes=1_000_000)
    async with start(settings) as run:
        job = await until(run, (await tune(run))["id"])
        assert (job["status"], job["error"]["code"]) == ("failed", code), job["error"]
        assert why in job["error"]["message"]
        assert (await events(run, job["id"]))[-1].startswith("The job has failed: ")
        assert job["fine_tuned_model"] is None and not run.ollama.calls["/api/blobs/{digest}"]
        left = [] if code.startswith("training") else [job["id"]]  # the output of a training is kept for a day
        await until_true(lambda: [one.name for one in (tmp_path / "tuning").iterdir()] == left)


async def test_a_trainer_sees_no_secrets_of_the_servers(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPS_KEY", "canary")
    settings = config(f"sqlite:///{tmp_path}/x.db", tmp_path, "environment", {"env": {"HF_HOME": "/models"}})
    async with start(settings) as run:
        job = await until(run, (await tune(run))["id"])
        said = " ".join(await events(run, job["id"]))
        assert "/models" in said and "PATH" in said and "canary" not in said


async def test_a_trainers_output_is_bounded(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path, "chatter")) as run:
        job = await until(run, (await tune(run))["id"])
        assert job["status"] == "succeeded"
        last, count = "", 0
        while True:
            page = await call(run, "GET", f"{JOBS}/{job['id']}/events?limit=100{last}")
            count += len(page["data"])
            if not page["has_more"]:
                break
            last = f"&after={page['last_id']}"
        assert 200 < count <= 2100
        (mine,) = (await call(run, "GET", "/api/me/data"))["data"]["fine_tuning"]
        assert len(mine["events"]) == count
        for wrong in ("ftevent-1-x", "ftevent--1", f"ftevent-x-{job['id']}"):
            await call(run, "GET", f"{JOBS}/{job['id']}/events?after={wrong}", A, 404)
        await call(run, "GET", f"{JOBS}/{job['id']}/checkpoints?after=x", A, 404)


async def test_a_cancelled_job_ends_its_trainer_and_all_its_children(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "GRACE", 0.2)
    note = tmp_path / "note"
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path, f"hang:{note}")) as run:
        job = await tune(run)
        waiting = await tune(run)
        processes = await noted(note)
        running = await until(run, job["id"], ["running"])
        assert running["error"] is None and running["progress"] <= 0.1
        assert (await until(run, waiting["id"], ["queued"]))["status"] == "queued"  # one at a time
        told = await call(run, "POST", f"{JOBS}/{job['id']}/cancel")
        assert told["status"] == "cancelled" and told["finished_at"]
        await until_dead(processes)
        assert (await events(run, job["id"]))[-1] == "The job was cancelled."
        assert (await call(run, "POST", f"{JOBS}/{waiting['id']}/cancel"))["status"] == "cancelled"


async def test_a_job_cancelled_while_its_model_is_created_leaves_no_model(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, tasks = asyncio.Event(), dict[str, asyncio.Task[None]]()

    async def results(self: work.Work, job: Job) -> str:
        made.set()
        await asyncio.sleep(30)
        return ""

    monkeypatch.setattr(work.Work, "results", results)
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        id = (await tune(run))["id"]
        async with asyncio.timeout(30):
            await made.wait()
        assert [one for one in run.ollama.store.all() if one.name.model.startswith("ft-")]
        tasks |= runner_of(run).shared.training
        await call(run, "POST", f"{JOBS}/{id}/cancel")
        await asyncio.wait(tasks.values(), timeout=30)
        assert not [one for one in run.ollama.store.all() if one.name.model.startswith("ft-")]


@pytest.mark.parametrize("path", [f"{JOBS}/ID/cancel", "/api/me/data"], ids=["cancelled", "forgotten"])
async def test_a_requeued_job_that_is_cancelled_or_deleted_leaves_no_model(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    made, ollama = asyncio.Event(), Simulator()

    async def results(self: work.Work, job: Job) -> str:
        made.set()
        await asyncio.sleep(30)
        return ""

    def models() -> list[str]:
        return [one.name.model for one in ollama.store.all() if one.name.model.startswith("ft-")]

    monkeypatch.setattr(work.Work, "results", results)
    settings = config(f"sqlite:///{tmp_path}/x.db", tmp_path)
    async with start(settings, ollama) as run:
        id = (await tune(run))["id"]
        async with asyncio.timeout(30):
            await made.wait()
    assert models()
    async with start(settings.replace('"small"', '"another"'), ollama) as run:
        assert (await call(run, "GET", f"{JOBS}/{id}"))["status"] == "queued"
        await call(run, "POST" if "ID" in path else "DELETE", path.replace("ID", id))
        await until_true(lambda: not models())


async def test_a_reload_does_not_affect_a_running_training(start: Start, tmp_path: Path) -> None:
    note = tmp_path / "note"
    settings = config(f"sqlite:///{tmp_path}/x.db", tmp_path, f"hang:{note}")
    async with start(settings) as run:
        job = await tune(run)
        processes = await noted(note)
        run.configure(settings.replace('"at_once": 1', "") + "# changed\nparams: strict\n")
        await run.server.reload()
        await asyncio.sleep(0.3)
        assert all(map(alive, processes))
        await call(run, "POST", f"{JOBS}/{job['id']}/cancel")
        await until_dead(processes[:1])
    await until_dead(processes)


async def test_jobs_started_after_a_reload_use_the_new_configuration(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "EVERY", 600.0)
    settings = config(f"sqlite:///{tmp_path}/x.db", tmp_path, "fail")
    ollama = Simulator(faults=[Fault("stall")])
    async with start(settings, ollama) as run:
        asking = asyncio.ensure_future(run.http.post(f"{run.url}/v1/chat/completions", json=ASK, headers=A))
        await ollama.until(lambda: ollama.running == 1)
        old = runner_of(run)
        run.configure(config(f"sqlite:///{tmp_path}/x.db", tmp_path))
        assert await run.server.reload()
        new = runner_of(run)
        assert new is not old and old.loop is not None and not old.loop.done(), "the old pipeline's last call continues"
        job = await tune(run)
        assert await old.claimed() is None
        assert (await until(run, job["id"]))["status"] == "succeeded"
        asking.cancel()


async def test_a_model_trained_across_a_reload_goes_to_the_new_upstream(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "PAUSES", (0.05,) * 2000)
    settings, other = config(f"sqlite:///{tmp_path}/x.db", tmp_path), Simulator()
    async with running(other) as url, start(settings) as run:
        run.ollama.faults.append(Fault("reset", path="/api/create", times=10_000))
        job = await tune(run)
        async with asyncio.timeout(30):
            while not any("Another try" in one for one in await events(run, job["id"])):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        run.configure(f"{settings}upstreams: {{local: {{ollama: '{url}'}}}}\n")
        assert await run.server.reload()
        assert (await until(run, job["id"]))["status"] == "succeeded"
    assert [one for one in other.store.all() if one.name.model.startswith("ft-")]


async def test_retrying_the_end_of_a_job_creates_one_results_file(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, away = JobLeases.end, [True]

    async def ending(self: JobLeases, job: Job, status: str, words: str, level: str = "info", **told: Any) -> bool:
        if away and away.pop():
            await self.release(job, "queued")
            raise Busy("away")
        return await end(self, job, status, words, level, **told)

    monkeypatch.setattr(JobLeases, "end", ending)
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        job = await until(run, (await tune(run))["id"])
        assert job["status"] == "succeeded" and not away
        files = await call(run, "GET", "/v1/files?purpose=fine-tune-results")
    assert [one["id"] for one in files["data"]] == job["result_files"]


@pytest.mark.parametrize("late", [False, True])
async def test_a_job_that_is_cancelled_just_before_its_end_leaves_no_file_of_results(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """late: its process hears of it only when it wants to end the job."""
    end, kept, go, ends = JobLeases.end, asyncio.Event(), asyncio.Event(), list[bool]()

    async def ending(self: JobLeases, job: Job, status: str, words: str, level: str = "info", **told: Any) -> bool:
        kept.set()
        await go.wait()
        ends.append(await end(self, job, status, words, level, **told))
        return ends[-1]

    monkeypatch.setattr(JobLeases, "end", ending)
    if late:
        monkeypatch.setattr(runner.Runner, "stop", lambda *_: None)
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        id = (await tune(run))["id"]
        async with asyncio.timeout(30):
            await kept.wait()
        tasks = list(runner_of(run).shared.training.values())
        assert (await call(run, "GET", "/v1/files?purpose=fine-tune-results"))["data"]
        await call(run, "POST", f"{JOBS}/{id}/cancel")
        go.set()
        await asyncio.wait(tasks, timeout=30)
        assert ends == ([False] if late else [])
        assert not (await call(run, "GET", "/v1/files?purpose=fine-tune-results"))["data"]


async def begun(url: str) -> None:
    async with aiohttp.ClientSession(headers=A) as http:
        made = await (await http.post(f"{url}/v1/files", data=form(lines(), "a.jsonl", purpose="fine-tune"))).json()
        body = {"model": "demo", "training_file": made["id"]}
        assert (await http.post(url + JOBS, json=body)).status == 200


@pytest.mark.slow
async def test_a_killed_server_leaves_no_trainer_and_restarts_the_job(tmp_path: Path) -> None:
    note, file = tmp_path / "note", tmp_path / "proxy.yaml"
    text = config(f"sqlite:///{tmp_path}/x.db", tmp_path, f"hang:{note}")
    file.write_text(text + "upstreams: {local: {demo: {}}}\nlisten: {port: 0, drain: 1}\n")
    for starts in range(2):
        async with served("serve", "--config", str(file)) as server:
            if not starts:
                await begun(server.url)
            processes = await noted(note)
            note.unlink()
            os.kill(server.process.pid, signal.SIGKILL)
            await server.process.wait()
            await until_dead(processes)


async def test_a_training_interrupted_by_two_server_stops_has_failed(start: Start, tmp_path: Path) -> None:
    note = tmp_path / "note"
    settings = config(f"sqlite:///{tmp_path}/x.db", tmp_path, f"hang:{note}")
    async with start(settings) as run:
        id = (await tune(run))["id"]
        processes = await noted(note)
    await until_dead(processes)  # stopping the server ends its trainers
    note.unlink()
    async with start(settings):
        await noted(note)
    async with start(settings) as run:
        job = await until(run, id, ["failed"])  # it is shown as running for a moment
        assert job["error"]["code"] == "server_ended"
        assert any("begins again" in one for one in await events(run, id))


async def test_a_job_is_deleted_although_its_base_model_moved_to_an_openai_upstream(
    start: Start, tmp_path: Path
) -> None:
    settings, ollama = config(f"sqlite:///{tmp_path}/x.db", tmp_path, "fail"), Simulator()
    async with start(settings, ollama) as run:
        assert (await until(run, (await tune(run))["id"]))["status"] == "failed"
    async with start() as far, start(f"{settings}upstreams: {{far: {{openai: '{far.url}/v1'}}}}\n") as run:
        assert (await call(run, "DELETE", "/api/me/data"))["deleted"]["fine_tuning"] == 1


async def test_the_estimate_of_a_restarted_training_ignores_the_time_before(start: Start, tmp_path: Path) -> None:
    note = tmp_path / "note"
    settings = config(f"sqlite:///{tmp_path}/x.db", tmp_path, f"hang:{note}")
    async with start(settings) as run:
        id = (await tune(run))["id"]
        await noted(note)
        async with runner_of(run).job_leases.database.writing() as connection:
            await connection.execute(update(JOBS_TABLE).values(began=1))  # long ago
    note.unlink()
    async with start(settings) as run:
        await noted(note)
        async with asyncio.timeout(30):
            while not (job := await call(run, "GET", f"{JOBS}/{id}"))["progress"]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert job["estimated_finish"] < time.time() + 3600


async def test_a_whole_model_is_imported_unchanged(start: Start, tmp_path: Path) -> None:
    ollama = Simulator(version="0.34.1")
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path, "gguf", {"output": "gguf"}), ollama) as run:
        job = await until(run, (await tune(run))["id"])
        assert job["status"] == "succeeded"
        answer = await run.http.post(
            f"{run.url}/v1/chat/completions",
            headers=A,
            json={"model": job["fine_tuned_model"], "messages": [{"role": "user", "content": "x"}]},
        )
        assert answer.status == 200


async def test_an_ollama_without_adapter_support_is_detected_before_the_training(start: Start, tmp_path: Path) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path), Simulator(version="0.34.1")) as run:
        told = await tune(run, None, A, 400)
        assert told["error"]["code"] == "adapters_unsupported" and "'gguf'" in told["error"]["message"]


async def test_if_the_host_refuses_the_model_the_job_fails_and_its_output_stays_for_a_day(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        run.ollama.store.add_blob = lambda digest, head: None  # type: ignore[method-assign]
        job = await until(run, (await tune(run))["id"])
        assert job["error"]["code"] == "import_failed" and "no such file" in job["error"]["message"]
        await asyncio.sleep(0.1)
        kept = tmp_path / "tuning" / job["id"]
        assert list(kept.glob("run-*/adapter.gguf"))
        monkeypatch.setattr(runner, "KEPT", -10)
        await runner_of(run).tidy()
        assert not kept.exists()


async def test_a_folder_is_kept_while_any_process_holds_its_job(start: Start, tmp_path: Path) -> None:
    note = tmp_path / "note"
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path, f"hang:{note}")) as run:
        job = await tune(run)
        await noted(note)
        runner = runner_of(run)
        tasks, runner.shared.training = runner.shared.training, {}  # as seen by another process
        (tmp_path / "tuning" / "ftjob-gone").mkdir()
        await runner.tidy()
        assert [one.name for one in (tmp_path / "tuning").iterdir()] == [job["id"]]
        runner.shared.training = tasks
        await call(run, "POST", f"{JOBS}/{job['id']}/cancel")


async def test_deleting_a_folder_does_not_affect_the_process_that_takes_the_job_over(
    start: Start, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, remove = tmp_path / "tuning" / "ftjob-1", shutil.rmtree

    def taken_up(path: Path, **more: Any) -> None:
        """Create the folder anew, as another process that takes the job over at this moment."""
        folder.mkdir(exist_ok=True)
        (folder / "job.json").touch()
        remove(path, **more)

    async with start(config(database_url, tmp_path)) as run:
        runner = runner_of(run)
        row = {"id": "ftjob-1", "owner": "alice", "model": "demo", "trainer": "of another server", "hyper": "{}"}
        await runner.job_leases.store.add(row)
        folder.mkdir(parents=True)
        (folder / "old").touch()
        monkeypatch.setattr(shutil, "rmtree", taken_up)
        await runner.clean(["ftjob-1"])
        monkeypatch.undo()
        assert [one.name for one in folder.iterdir()] == ["job.json"]
        (folder.parent / "going-1").mkdir()  # left by a process that was killed
        await runner.tidy()
        assert [one.name for one in folder.parent.iterdir()] == []


async def test_without_the_plugin_files_jobs_are_refused(start: Start, tmp_path: Path) -> None:
    settings = config(f"sqlite:///{tmp_path}/x.db", tmp_path).replace('"files": {}, ', "")
    async with start(settings) as run:
        told = await tune(run, "file-x", A, 404)
        assert "plugin `files`" in told["error"]["message"]
        assert (await call(run, "POST", f"{JOBS}/x/pause", A, 404))["error"]["message"].endswith("but not paused")


async def test_unreachable_hosts_are_retried(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "PAUSES", (0.01, 0.01))
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        job = await tune(run)
        run.ollama.faults.append(Fault("reset", path="/api/create", times=1))
        job = await until(run, job["id"])
        assert job["status"] == "succeeded", job["error"]
        assert any("Another try follows" in one for one in await events(run, job["id"]))


async def test_a_host_unreachable_at_the_end_of_a_training_is_retried(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "PAUSES", (0.01,))
    ask, away = Importer.facts, [True]

    async def facts(self: Importer, base: str) -> Mapping[str, JSON]:
        if away and away.pop():
            raise UpstreamError("It is away.", "connect")
        return await ask(self, base)

    monkeypatch.setattr(Importer, "facts", facts)
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        job = await until(run, (await tune(run))["id"])
        assert job["status"] == "succeeded", job["error"]
        assert "It is away.  Another try follows in 0.01 s." in await events(run, job["id"])


async def test_a_finished_training_is_not_repeated_after_a_restart(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "PAUSES", (600.0,))
    settings = config(f"sqlite:///{tmp_path}/x.db", tmp_path)
    async with start(settings) as run:
        job = await tune(run)
        run.ollama.faults.append(Fault("reset", path="/api/create", times=1))
        async with asyncio.timeout(30):
            while not any("Another try" in one for one in await events(run, job["id"])):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    async with start(settings) as run:
        assert (await until(run, job["id"]))["status"] == "succeeded"
        said = await events(run, job["id"])
        assert said.count("Training begins.") == 1 and not any("begins again" in one for one in said)


async def test_a_job_that_succeeds_while_it_is_deleted_leaves_no_model(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owned, first = Store.owned, [True]

    async def earlier(self: Store, owner: str, limit: int) -> Sequence[Job]:
        found = await owned(self, owner, limit)
        return [one._replace(status="running") for one in found] if first and first.pop() else found

    monkeypatch.setattr(Store, "owned", earlier)
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        await until(run, (await tune(run))["id"])
        assert (await call(run, "DELETE", "/api/me/data"))["deleted"]["fine_tuning"] == 1
        assert not [one for one in run.ollama.store.all() if one.name.model.startswith("ft-")]
