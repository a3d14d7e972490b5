"""From a training file to a model that answers, through the stock OpenAI client."""

from __future__ import annotations

import asyncio
from pathlib import Path

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from proxy.upstreams.demo import Simulator
from tests.conftest import HI, Start
from tests.plugins.finetuning.asking import EXAMPLES, config, lines


async def ended(client: openai.AsyncOpenAI, id: str) -> FineTuningJob:
    async with asyncio.timeout(40):
        while (job := await client.fine_tuning.jobs.retrieve(id)).finished_at is None:  # noqa: ASYNC110  (there is no event)
            await asyncio.sleep(0.05)
    return job


async def check_shown(client: openai.AsyncOpenAI, job: FineTuningJob) -> None:
    """Check the job's events, checkpoints and results, and the lists that contain it."""
    said = [one async for one in client.fine_tuning.jobs.list_events(job.id, limit=3)]
    assert said[0].message == f"The job has succeeded: ask for the model '{job.fine_tuned_model}'."
    assert said[-1].message.startswith("The job was created")
    assert [one.type for one in said].count("metrics") == 5
    (mark,) = (await client.fine_tuning.jobs.checkpoints.list(job.id)).data
    assert (mark.step_number, mark.metrics.valid_loss) == (4, 0.5)
    results = await client.files.content(job.result_files[0])
    assert results.text.splitlines()[1].startswith("1,1.0,")
    assert [one.id async for one in client.fine_tuning.jobs.list(metadata={"team": "sums"})] == [job.id]
    assert [one.id async for one in client.fine_tuning.jobs.list(metadata={"team": "others"})] == []


async def test_openais_client_tunes_a_model_and_talks_to_it(start: Start, database_url: str, tmp_path: Path) -> None:
    ollama = Simulator()
    async with start(config(database_url, tmp_path), ollama) as run:
        client = run.client(api_key="a-key")
        training = await client.files.create(file=("sums.jsonl", lines()), purpose="fine-tune")
        checking = await client.files.create(file=("checks.jsonl", lines(EXAMPLES[:2])), purpose="fine-tune")
        job = await client.fine_tuning.jobs.create(
            model="demo",
            training_file=training.id,
            validation_file=checking.id,
            suffix="My Sums!",
            seed=7,
            metadata={"team": "sums"},
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 6}}},
        )
        assert (job.status, job.object, job.seed) == ("validating_files", "fine_tuning.job", 7)
        job = await ended(client, job.id)
        FineTuningJob.model_validate(job.model_dump(warnings="error"), strict=True)
        assert job.status == "succeeded" and job.error is None, job
        model = job.fine_tuned_model
        assert model is not None and model.startswith("ft-demo-my-sums-") and len(model) <= 80
        assert job.trained_tokens == 1234 and job.finished_at and job.hyperparameters.n_epochs == 2
        await check_shown(client, job)
        answer = await client.chat.completions.create(model=model, messages=HI)  # type: ignore[arg-type]
        assert answer.choices[0].message.content
        assert f"{model}:latest" in [one.id async for one in client.models.list()]
        assert len(ollama.store.blobs) == 1
        assert (await client.models.delete(model)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.models.delete(model)
        assert (await client.fine_tuning.jobs.retrieve(job.id)).fine_tuned_model is None
        assert not list((tmp_path / "tuning").iterdir())
