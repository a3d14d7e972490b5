"""OpenAI's endpoints for fine-tuning, and two of our own: to create a dataset, and to check one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

import orjson
from aiohttp import web

from plugins.finetuning import shapes
from plugins.finetuning.collecting import Collect, Collecting
from plugins.finetuning.events import Events
from plugins.finetuning.forms import Check, CreateJob, JobPage, Page
from plugins.finetuning.reading import Datasets
from plugins.finetuning.runner import PREFIX, Runner
from plugins.finetuning.store import Store
from plugins.finetuning.trainer import Trainer
from proxy.errors import BadCall, NotFound
from proxy.host import Host
from proxy.types import Caller, Route, Who
from proxy.wire.ids import timely_id

JOBS: Final = "/v1/fine_tuning/jobs"
STRANGE: Final = re.compile(r"[^a-z0-9_.-]+")
BASE, SUFFIX, ID = 36, 24, 12
"""Maximum characters of each part of a new model's name; Ollama allows eighty in total."""


@dataclass(frozen=True, slots=True)
class Api:
    store: Store
    events: Events
    datasets: Datasets
    runner: Runner
    trainers: Mapping[str, Trainer]
    host: Host
    who: Who

    def routes(self) -> Iterable[Route]:
        for method, path, handle in (
            ("POST", JOBS, self.create),
            ("GET", JOBS, self.list),
            ("GET", f"{JOBS}/{{id}}", self.get),
            ("POST", f"{JOBS}/{{id}}/cancel", self.cancel),
            ("GET", f"{JOBS}/{{id}}/events", self.happened),
            ("GET", f"{JOBS}/{{id}}/checkpoints", self.checkpoints),
            ("DELETE", "/v1/models/{id:.+}", self.delete),
            ("POST", "/api/finetuning/datasets", self.collect),
            ("POST", "/api/finetuning/datasets/check", self.check),
        ):
            yield Route(method, path, handle, self.who)

    def owner(self, request: web.BaseRequest) -> str:
        return self.host.requests.caller(request).name

    # --- jobs ----------------------------------------------------------------------------------------

    async def create(self, request: web.BaseRequest) -> web.StreamResponse:
        """Refuse at once whatever is certain to fail, before it costs hours."""
        form, caller = await self.host.requests.form(request, CreateJob), self.host.requests.caller(request)
        name = await self.trainer_of(form.model, caller)
        for param, id in (("training_file", form.training_file), ("validation_file", form.validation_file)):
            if id is not None:
                await self.datasets.file(caller.name, id, param)
        await self.host.imports.check(form.model, self.trainers[name].output != "gguf")
        id, suffix = timely_id(PREFIX), form.suffix or ""
        row = {
            "id": id,
            "owner": caller.name,
            "model": form.model,
            "trainer": name,
            "training_file": form.training_file,
            "validation_file": form.validation_file or "",
            "tuned": tuned(self.host.models.named(form.model), suffix, id),
            "hyper": orjson.dumps(form.hyper().settled()).decode(),
            "metadata": orjson.dumps(form.metadata or {}).decode(),
            "seed": int(id[-7:], 16) if form.seed is None else form.seed,
            "suffix": suffix,
        }
        job = await self.store.add(row)
        await self.events.say(id, "The job was created; its files are being read.")
        self.runner.nudge()
        return shapes.answer(shapes.job(job, self.store.micros()))

    async def trainer_of(self, model: str, caller: Caller) -> str:
        """The name of the trainer for a model.  Raises NotFound and BadCall."""
        info = await self.host.models.info(model, caller.models)
        if info is None:
            message = f"The model '{model[:200]}' does not exist or you do not have access to it."
            raise NotFound(message, param="model", code="model_not_found")
        named = self.host.models.named(model)
        if await self.store.of_model(None, named.removesuffix(":latest")):
            message = f"The model '{model[:200]}' was itself fine-tuned: train its base with all of the examples."
            raise BadCall(message, param="model", code="model_not_tunable")
        for name, trainer in self.trainers.items():
            if any(fits(pattern.lower(), named) for pattern in trainer.models):
                if info.can("completion") is False:
                    break
                return name
        message = f"The model '{model[:200]}' cannot be fine-tuned: no trainer of this server supports it."
        raise BadCall(message, param="model", code="model_not_tunable")

    async def list(self, request: web.BaseRequest) -> web.StreamResponse:
        wanted = self.host.requests.query(request, JobPage).wanted()
        jobs, more = await self.store.page(self.owner(request), wanted)
        now = self.store.micros()
        return shapes.answer(shapes.listed([shapes.job(one, now) for one in jobs], more))

    async def get(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        return shapes.answer(shapes.job(await self.store.one(self.owner(request), id), self.store.micros()))

    async def cancel(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        job = await self.runner.job_leases.cancel(self.owner(request), id)
        self.runner.cancelled(job)
        return shapes.answer(shapes.job(job, self.store.micros()))

    async def happened(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        page = self.host.requests.query(request, Page)
        job = await self.store.one(self.owner(request), id)
        events, more = await self.events.page(job, page.after, page.limit)
        return shapes.answer(shapes.listed([shapes.event(one) for one in events], more))

    async def checkpoints(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        page = self.host.requests.query(request, Page)
        job = await self.store.one(self.owner(request), id)
        found, more = await self.events.checkpoints(job, page.after, page.limit)
        return shapes.answer(shapes.listed([shapes.checkpoint(one) for one in found], more))

    # --- models and datasets -------------------------------------------------------------------------

    async def delete(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        """Delete a model that a job created; admins may delete everybody's."""
        caller, name = self.host.requests.caller(request), id.removesuffix(":latest").lower()
        job = await self.store.of_model(None if caller.is_admin else caller.name, name)
        if job is None:
            message = f"The model '{id[:200]}' does not exist, or was not made by a fine-tuning job of yours."
            raise NotFound(message, param="model", code="model_not_found")
        await self.host.imports.remove(job.tuned, job.model)
        await self.store.deleted(job)
        return shapes.answer({"id": id, "object": "model", "deleted": True})

    async def collect(self, request: web.BaseRequest) -> web.StreamResponse:
        form = await self.host.requests.form(request, Collect)
        return shapes.answer(await Collecting(self.datasets, self.host).make(self.owner(request), form))

    async def check(self, request: web.BaseRequest) -> web.StreamResponse:
        form = await self.host.requests.form(request, Check)
        report = await self.datasets.read(self.owner(request), form.file_id, "file_id")
        return shapes.answer(shapes.report(form.file_id, report))


def fits(pattern: str, named: str) -> bool:
    return fnmatchcase(named, pattern) or fnmatchcase(named.removesuffix(":latest"), pattern)


def tuned(base: str, suffix: str, id: str) -> str:
    """The name of the new model.  base: canonical name.  id: of the job, which makes the name unique."""
    parts = (clean(base.removesuffix(":latest"), BASE), clean(suffix, SUFFIX), id[-ID:])
    return "-".join(["ft", *filter(None, parts)])


def clean(text: str, most: int) -> str:
    return STRANGE.sub("-", text.lower()).strip("-.")[:most].rstrip("-.")
