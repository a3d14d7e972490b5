"""Helpers for the tests of fine-tuning."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.conftest import Running
from tests.plugins.files.asking import KEYS, A, form, send

TRAINER = Path(__file__).parent / "trainer.py"
OVER = ("succeeded", "failed", "cancelled")


def example(number: int) -> dict[str, Any]:
    said = {"user": f"What is {number} and {number}?", "assistant": str(2 * number)}
    return {"messages": [{"role": role, "content": text} for role, text in said.items()]}


EXAMPLES = [example(number) for number in range(12)]


def lines(examples: Iterable[Any] = EXAMPLES) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in examples).encode()


def config(url: str, folder: Path, how: str = "well", trainer: dict[str, Any] | None = None, **settings: Any) -> str:
    """A configuration.  how: what its trainer does."""
    command = [sys.executable, str(TRAINER), how]
    trainers = {"small": {"command": command, "models": ["demo*"], **(trainer or {})}}
    tuning = {"trainers": trainers, "folder": str(folder / "tuning"), "who": "user", **settings}
    told = {"database": {"url": url}, "plugins": {"files": {}, "finetuning": tuning}, "chains": {"chat": []}}
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in told.items()) + KEYS


async def upload(
    run: Running, data: bytes | None = None, name: str = "a.jsonl", who: dict[str, str] = A, purpose: str = "fine-tune"
) -> str:
    id: str = (await send(run, form(lines() if data is None else data, name, purpose=purpose), who))["id"]
    return id


async def call(
    run: Running, method: str, path: str, who: dict[str, str] = A, status: int | None = 200, /, **body: Any
) -> Any:
    async with run.http.request(method, f"{run.url}{path}", headers=who, json=body or None) as response:
        text = await response.text()
        assert response.status == status or status is None, text
        return json.loads(text)


async def tune(
    run: Running, file: str | None = None, who: dict[str, str] = A, status: int | None = 200, /, **more: Any
) -> Any:
    told = {"model": "demo", "training_file": file or await upload(run, who=who), **more}
    return await call(run, "POST", "/v1/fine_tuning/jobs", who, status, **told)


async def until(run: Running, id: str, statuses: Iterable[str] = OVER, who: dict[str, str] = A) -> Any:
    async with asyncio.timeout(40):
        while (job := await call(run, "GET", f"/v1/fine_tuning/jobs/{id}", who))["status"] not in statuses:  # noqa: ASYNC110  (there is no event)
            await asyncio.sleep(0.05)
    return job


async def events(run: Running, id: str, who: dict[str, str] = A) -> list[str]:
    """The messages of a job's events, in order."""
    told = await call(run, "GET", f"/v1/fine_tuning/jobs/{id}/events?limit=100", who)
    return [one["message"] for one in reversed(told["data"])]
