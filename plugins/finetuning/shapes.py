"""Jobs in OpenAI's shapes.  Source: OpenAI's API reference, "Fine-tuning"."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
from aiohttp import web

from plugins.finetuning.dataset import Report
from plugins.finetuning.events import Checkpoint, Event
from plugins.finetuning.store import Job
from proxy.types import JSON


def answer(body: JSON) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")


def listed(data: Sequence[dict[str, JSON]], more: bool) -> JSON:
    ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": ends[0], "last_id": ends[1], "has_more": more}


def seconds(at: int) -> int | None:
    return at // 1_000_000 or None


def job(one: Job, now: int) -> dict[str, JSON]:
    """now: in microseconds, for `estimated_finish`.  `progress`, from 0 to 1, is not in OpenAI's API."""
    hyper = one.hypers
    made = one.status == "succeeded" and not one.gone
    left = (now - one.began) * (one.total - one.done) // one.done if one.done else 0
    left = min(left, 10**15)  # thirty years: a trainer may report any number of steps
    error = {"code": one.code, "message": one.error, "param": one.param or None} if one.code else None
    return {
        "id": one.id,
        "object": "fine_tuning.job",
        "created_at": one.at // 1_000_000,
        "finished_at": seconds(one.ended),
        "estimated_finish": seconds(now + left) if one.status == "running" and one.done and one.total else None,
        "error": error,
        "fine_tuned_model": one.tuned if made else None,
        "hyperparameters": hyper,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyper}},
        "model": one.model,
        "organization_id": one.owner,
        "result_files": one.results.split(),
        "seed": one.seed,
        "status": one.status,
        "progress": progress(one),
        "trained_tokens": one.trained or None,
        "training_file": one.training_file,
        "validation_file": one.validation_file or None,
        "user_provided_suffix": one.suffix or None,
        "integrations": [],
        "metadata": orjson.loads(one.metadata),
    }


def progress(one: Job) -> float:
    if one.status == "succeeded":
        return 1.0
    return round(min(1.0, one.done / one.total), 4) if one.total else 0.0


def event(one: Event) -> dict[str, JSON]:
    return {
        "id": one.id,
        "object": "fine_tuning.job.event",
        "created_at": one.at // 1_000_000,
        "level": one.level,
        "message": one.message,
        "type": "metrics" if one.sample >= 0 else "message",
        "data": orjson.loads(one.data) if one.data else {},
    }


def checkpoint(one: Checkpoint) -> dict[str, JSON]:
    """The model is only a name that the trainer gave: only the end result is imported."""
    return {
        "id": one.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": one.at // 1_000_000,
        "fine_tuned_model_checkpoint": one.name,
        "fine_tuning_job_id": one.job,
        "metrics": {"step": one.step, **orjson.loads(one.metrics)},
        "step_number": one.step,
    }


def report(file: str, one: Report) -> JSON:
    return {
        "object": "fine_tuning.dataset.check",
        "file_id": file,
        "format": one.format,
        "valid": not one.wrong,
        "examples": one.examples,
        "tokens": one.tokens,
        "longest_example": {"tokens": one.longest, "line": one.longest_line} if one.examples else None,
        "invalid": one.wrong,
        "problems": [{"line": problem.line or None, "message": problem.message} for problem in one.problems],
    }
