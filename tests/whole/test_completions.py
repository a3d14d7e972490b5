"""The stock OpenAI client against a running server: text completions."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from openai.types import completion_create_params

from proxy.upstreams.demo import Fault, Said, Simulator
from proxy.wire.openai_completions import FIELDS
from tests.conftest import BARE, Start
from tests.whole.asking import error_of, streamed

ASK: dict[str, Any] = {"model": "demo", "prompt": "Once upon a time"}


def generated(ollama: Simulator) -> list[dict[str, Any]]:
    return [one.body for one in ollama.seen if one.path == "/api/generate"]


async def test_a_prompt_reaches_the_model_unchanged(start: Start) -> None:
    async with start() as run, run.client() as client:
        whole = await client.completions.create(**ASK, max_tokens=100)
        stream = await client.completions.create(**ASK, max_tokens=100, stream=True)
        pieces = "".join([chunk.choices[0].text async for chunk in stream])
        assert whole.choices[0].text == pieces and whole.choices[0].finish_reason == "stop"
        assert whole.id.startswith("cmpl-") and whole.object == "text_completion"
        assert whole.usage is not None and whole.usage.total_tokens > whole.usage.prompt_tokens > 0
        (body, _) = generated(run.ollama)
        assert (body["prompt"], body["raw"], body["truncate"]) == (ASK["prompt"], True, False)
        assert run.ollama.reloads == 0


async def test_max_tokens_defaults_to_sixteen(start: Start) -> None:
    async with start() as run, run.client() as client:
        answer = await client.completions.create(**ASK)
        assert answer.choices[0].finish_reason == "length"
        assert generated(run.ollama)[0]["options"] == {"num_predict": 16}


async def test_choices_are_in_the_order_of_the_prompts(start: Start) -> None:
    ollama = Simulator(say=lambda body: Said(f"{body['prompt']}/{body['options'].get('seed')}"))
    async with start(ollama=ollama) as run, run.client() as client:
        answer = await client.completions.create(model="demo", prompt=["a", "b"], n=2, seed=7, echo=True)
        assert [choice.text for choice in answer.choices] == ["aa/7", "aa/8", "bb/7", "bb/8"]
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        stream = await client.completions.create(model="demo", prompt=["a", "b"], n=2, seed=7, echo=True, stream=True)
        texts: dict[int, str] = {}
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + choice.text
        assert texts == {0: "aa/7", 1: "aa/8", 2: "bb/7", 3: "bb/8"}


async def test_logprobs_have_the_shape_of_completions(start: Start) -> None:
    async with start() as run, run.client() as client:
        answer = await client.completions.create(**ASK, logprobs=2)
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None and logprobs.tokens and logprobs.token_logprobs and logprobs.top_logprobs
        assert "".join(logprobs.tokens) == answer.choices[0].text
        assert logprobs.text_offset is not None
        assert [
            answer.choices[0].text[at:].startswith(token)
            for at, token in zip(logprobs.text_offset, logprobs.tokens, strict=True)
        ].count(False) == 0
        assert len(logprobs.top_logprobs[0]) == 2


async def test_best_of_returns_the_best_answer(start: Start) -> None:
    async with start() as run, run.client() as client:
        answer = await client.completions.create(**ASK, best_of=3, seed=1)
        assert len(answer.choices) == 1 and answer.choices[0].logprobs is None
        assert [body["options"]["seed"] for body in generated(run.ollama)] == [1, 2, 3]
        with pytest.raises(openai.BadRequestError, match="cannot be streamed"):
            await client.completions.create(**ASK, best_of=3, stream=True)


async def test_a_suffix_is_for_models_that_can_insert(start: Start) -> None:
    async with start() as run, run.client() as client:
        await client.completions.create(**ASK, suffix="The end.")
        assert generated(run.ollama)[0]["suffix"] == "The end." and "raw" not in generated(run.ollama)[0]
        with pytest.raises(openai.BadRequestError, match="insert") as refused:
            await client.completions.create(model="demo-thinking", prompt="a", suffix="b")
        assert refused.value.param == "suffix"


async def test_prompts_of_token_ids_are_decoded(start: Start) -> None:
    async with start() as run, run.client() as client:
        await client.completions.create(model="demo", prompt=[15339, 1917])
        await client.completions.create(model="demo", prompt=[[15339], [1917]])
        assert [body["prompt"] for body in generated(run.ollama)] == ["hello world", "hello", " world"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"n": 9}, "n"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
async def test_an_unsupported_or_invalid_field_is_named_in_the_error(
    start: Start, body: dict[str, Any], param: str
) -> None:
    async with start() as run:
        answer = await run.http.post(f"{run.url}/v1/completions", json={**ASK, **body})
        assert (answer.status, (await answer.json())["error"]["param"]) == (400, param)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_overlong_prompt_is_an_error_naming_the_field_prompt(start: Start, stream: bool) -> None:
    async with start() as run:
        body = {"model": "demo", "prompt": "word " * 9000, "stream": stream}
        error = await error_of(await run.http.post(f"{run.url}/v1/completions", json=body), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")


async def test_an_overlong_prompt_found_after_heartbeats_names_the_field_too(start: Start) -> None:
    """While the model loads, the stream has already begun with comments, so the error comes within it."""
    slow = Simulator(faults=[Fault("slow_load", until=(loaded := asyncio.Event()))])
    async with start(f"{BARE}\nstreams: {{heartbeat: 0.02}}\n", slow) as run:
        body = {"model": "demo", "prompt": "word " * 9000, "stream": True}
        response = await run.http.post(f"{run.url}/v1/completions", json=body)
        loaded.set()
        stream = await streamed(response)
    assert [one["param"] for one in stream.errors] == ["prompt"] and not stream.done


def test_every_field_of_the_sdk_is_known() -> None:
    named = set(completion_create_params.CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert named - set(FIELDS) == set()
