"""Processes one job, from its files to a model that can be used."""

from __future__ import annotations

import asyncio
import csv
import io
import logging
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from plugins.finetuning.events import Events
from plugins.finetuning.forms import RATE
from plugins.finetuning.gguf.adapter import Base, convert
from plugins.finetuning.gguf.refusal import Unfit
from plugins.finetuning.job_leases import JobLeases
from plugins.finetuning.measures import Measures
from plugins.finetuning.reading import Datasets
from plugins.finetuning.shared import Shared
from plugins.finetuning.store import Job
from plugins.finetuning.tables import JOBS
from plugins.finetuning.trainer import Failed, Trainer, Training, left
from proxy.errors import BadCall, Busy, NotFound, ProxyError, UpstreamError
from proxy.host import Host
from proxy.imports import Imports, NewModel
from proxy.wire.ids import new_id

log = logging.getLogger(__name__)
PAUSES: Final = (2.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds between attempts to import a model if hosts are unavailable; there is one attempt more."""
WRITE: Final = 0.5
"""Seconds between two writes of a trainer's output."""
STARTS: Final = 2
"""How often a training may be started: if the server ends in the middle, its progress is lost."""
TRAINED: Final = "trained"
"""A file in a training's folder which marks that it is complete."""
RUN: Final = "run-"
"""Prefix of a training's folder."""
RESULTS: Final = "fine-tune-results"
COLUMNS: Final = ("step", "train_loss", "valid_loss", "train_mean_token_accuracy", "valid_mean_token_accuracy",
                  "learning_rate", "epoch")  # fmt: skip


class LeaseLost(Exception):
    """Another process has taken the job over, or it was cancelled."""


@dataclass(frozen=True, slots=True)
class Work:
    """folder: contains a folder for each job.  most: maximum bytes of one of these."""

    host: Host
    job_leases: JobLeases
    events: Events
    datasets: Datasets
    trainers: Mapping[str, Trainer]
    folder: Path
    most: int

    # --- files ---------------------------------------------------------------------------------------

    async def validate(self, job: Job) -> None:
        """Raises ProxyError if the files are invalid."""
        tokens = await self.files(job, None)
        if not await self.job_leases.release(job, "queued", "The files are valid; the job waits.", tokens=tokens):
            raise LeaseLost

    async def files(self, job: Job, folder: Path | None) -> int:
        """The estimated number of training tokens.  folder: where to write the converted files, if they are needed."""
        tokens = 0
        for param, id in (("training_file", job.training_file), ("validation_file", job.validation_file)):
            if not id:
                continue
            target = None if folder is None else folder / f"{param.partition('_')[0]}.jsonl"
            report = await self.datasets.read(job.owner, id, param, None if param == "training_file" else 1, target)
            if report.wrong:
                told = "  ".join(str(one) for one in report.problems[:5])
                raise Failed(f"{report.wrong} problems in the {param}: {told}", code=f"invalid_{param}", param=param)
            if folder is None:
                told = f"{param}: {report.examples} examples, ~{report.tokens} tokens, at most {report.longest} in one."
                await self.events.say(job.id, told)
            tokens += report.tokens if param == "training_file" else 0
        return tokens

    # --- training ------------------------------------------------------------------------------------

    async def train(self, job: Job) -> None:
        """Raises ProxyError if it fails, and LeaseLost."""
        trainer, folder = self.trainers[job.trainer], self.folder / job.id
        measures = Measures()
        if (run := await asyncio.to_thread(trained_in, folder)) is None:
            if job.starts >= STARTS:
                raise Failed("The server ended twice while it was being trained.", code="server_ended")
            run = await self.begin(job, folder)
            await self.trained(job, trainer, run, measures)
            await asyncio.to_thread((run / TRAINED).touch)
        await self.bring(job, trainer, run)
        trained = measures.trained or job.tokens * int(job.hypers["n_epochs"])
        words, results = f"The job has succeeded: ask for the model '{job.tuned}'.", await self.results(job)
        if not await self.job_leases.end(job, "succeeded", words, trained=trained, results=results):
            await self.unmade(job)
            raise LeaseLost

    async def begin(self, job: Job, folder: Path) -> Path:
        """Prepare a training.  Gives its folder, in the job's."""
        if not await self.job_leases.tell(job, done=0):
            raise LeaseLost
        run = await made_anew(folder)
        await self.files(job, run)
        told = {
            "job": job.id,
            "model": self.host.models.real(job.model),
            "name": job.tuned,
            "training_file": str(run / "training.jsonl"),
            "validation_file": str(run / "validation.jsonl") if job.validation_file else None,
            "output": str(run / "output"),
            **job.hypers,
            "learning_rate": RATE * float(job.hypers["learning_rate_multiplier"]),
            "seed": job.seed,
            "suffix": job.suffix or None,
        }
        await asyncio.to_thread((run / "job.json").write_bytes, orjson.dumps(told, option=orjson.OPT_INDENT_2))
        if not await self.job_leases.tell(job, starts=job.starts + 1, began=self.job_leases.store.micros()):
            raise LeaseLost
        again = "Training begins again, because the server ended in the middle of it."
        await self.events.say(job.id, again if job.starts else "Training begins.", "warn" if job.starts else "info")
        return run

    async def trained(self, job: Job, trainer: Trainer, run: Path, measures: Measures) -> None:
        loop, last = asyncio.get_running_loop(), 0.0

        async def rest() -> None:
            nonlocal last
            if measures.moved and loop.time() - last > WRITE:
                last = loop.time()
                await self.write(job, measures)

        await Training(trainer, run, self.most, measures.hear, rest).run(run / "job.json")
        await self.write(job, measures)

    async def write(self, job: Job, measures: Measures) -> None:
        rows, marks = measures.taken()
        try:
            if not await self.job_leases.tell(job, done=measures.done, total=measures.total):
                raise LeaseLost
            await self.events.add(job.id, rows)
            for one in marks:
                await self.events.mark(job.id, one.name, one.step, one.metrics)
        except Busy as error:  # a short database outage must not end hours of work
            log.warning("output of the trainer of %s is lost: %s", job.id, error)

    # --- the model -----------------------------------------------------------------------------------

    @property
    def imports(self) -> Imports:
        """From the current configuration, which may be newer than the one with which the training began."""
        return Shared.of(self.host).newest(self.host).imports

    async def bring(self, job: Job, trainer: Trainer, folder: Path) -> None:
        """Import the model into the hosts.  Raises Failed."""
        model: NewModel | None = None

        async def report(words: str) -> None:
            await self.events.say(job.id, words)

        for pause in (*PAUSES, None):
            try:
                model = model or await self.made(job, trainer, folder)
                away = await self.imports.create(model, report)
                break
            except UpstreamError as error:
                if pause is None or error.cause in ("server", "invalid_answer"):
                    raise kept(job, folder, error) from error
                await self.events.say(job.id, f"{error}  Another try follows in {pause:g} s.", "warn")
                await asyncio.sleep(pause)
            except (BadCall, NotFound) as error:
                raise kept(job, folder, error) from error
        for words in away:
            await self.events.say(job.id, f"Not everywhere: {words}", "warn")

    async def made(self, job: Job, trainer: Trainer, folder: Path) -> NewModel:
        return NewModel(job.tuned, job.model, await self.gguf(job, trainer, folder), trainer.output != "gguf")

    async def unmade(self, job: Job) -> None:
        """Delete the model, and the file of results, of a job that was cancelled or deleted, but not if another process
        has taken it over."""
        with suppress(ProxyError):
            now = await self.job_leases.store.first(JOBS.c.id == job.id)
            if now is None or now.status == "cancelled":
                with suppress(ProxyError):
                    await self.datasets.file_store.discard(job.owner, results_of(job))
                await self.imports.remove(job.tuned, job.model)

    async def gguf(self, job: Job, trainer: Trainer, folder: Path) -> Path:
        """The file to import.  Raises Failed, and UpstreamError if the base model's host cannot be asked."""
        output = folder / "output"
        if trainer.output != "peft":
            return await asyncio.to_thread(only, output)
        facts, target = await self.imports.facts(job.model), folder / "adapter.gguf"
        try:
            base = await asyncio.to_thread(Base.of, facts, output)
            layers = await asyncio.to_thread(convert, output, base, target, job.tuned)
        except Unfit as error:
            raise Failed(str(error), code="unfit_adapter") from error
        except OSError as error:
            raise Failed(f"The trainer wrote no adapter: {error.strerror}.", code="unfit_adapter") from error
        await self.events.say(job.id, f"An adapter over {layers} layers was made GGUF.")
        return target

    async def results(self, job: Job) -> str:
        """The id of a CSV file with the measurements; "" if it cannot be stored, such as for lack of room."""
        name = f"step_metrics_{job.id}.csv"
        try:
            return (await self.datasets.file_store.add(job.owner, name, RESULTS, self.table(job), results_of(job))).id
        except Busy:
            raise
        except ProxyError as error:
            await self.events.say(job.id, f"There is no file of results: {error}", "warn")
            return ""

    async def table(self, job: Job) -> AsyncIterator[bytes]:
        """In one piece, because the number of stored measurements is bounded."""
        written = io.StringIO()
        rows = csv.writer(written)
        rows.writerow(COLUMNS)
        async for event in self.events.measured(job.id):
            data = orjson.loads(event.data)
            rows.writerow(data.get(name, "") for name in COLUMNS)
        yield written.getvalue().encode()


def results_of(job: Job) -> str:
    """The id of a job's file of results: always the same, so that a repeated attempt does not create another file."""
    return f"file-{job.id}"


async def made_anew(folder: Path) -> Path:
    """A new folder for a training, alone in its job's folder.

    Its name is new, too: what an earlier trainer has left running, if anything, still writes to the old one.
    """
    for old in await asyncio.to_thread(runs, folder):
        await left(old)  # an old trainer should not run beside the new one
    run = folder / new_id(RUN)
    await asyncio.to_thread(emptied, folder, run)
    return run


def runs(folder: Path, inside: str = "") -> list[Path]:
    """The folders of a job's trainings; with `inside`, these files of theirs."""
    return list(folder.glob(f"{RUN}*/{inside}"))


def emptied(folder: Path, run: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(0o700, parents=True, exist_ok=True)  # an old trainer may have put something there again
    run.mkdir(0o700)
    (run / "output").mkdir(0o700)


def trained_in(folder: Path) -> Path | None:
    """The folder of a job's complete training; None if there is none."""
    return next((one.parent for one in runs(folder, TRAINED)), None)


def only(output: Path) -> Path:
    """The single GGUF file in a folder.  Raises Failed."""
    several = list(output.glob("*.gguf"))
    if len(several) != 1:
        raise Failed(f"The trainer wrote {len(several)} GGUF files instead of one.", code="unfit_adapter")
    with several[0].open("rb") as file:
        if file.read(4) != b"GGUF":
            raise Failed("The trainer's output is not a GGUF file.", code="unfit_adapter")
    return several[0]


def kept(job: Job, folder: Path, error: ProxyError) -> Failed:
    """The error of a failed import.  The result of hours of training is kept for a day: the cause may be fixable."""
    log.warning("the model of %s could not be created; the training's result stays in %s for a day", job.id, folder)
    return Failed(str(error), code="import_failed")
