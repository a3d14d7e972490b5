"""All features in one chain, through the stock SDK."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conftest import Running, Start

CHAIN = "stored, usage, experiments, templates, limits, conversations, documents, cache, fallback, retry"
KEYS = "keys: {alice: a-key, bob: b-key}\n"
LIGHT = "The lantern of Porthgwarra was lit in 1891. Its keeper was Mabel Quill, who painted it green."
QUESTION = "When was the lantern of Porthgwarra lit?"


def config(folder: Path) -> str:
    plugins = {
        **{name: {} for name in CHAIN.split(", ")},
        "experiments": {"experiments": {"same": {"variants": [{"name": "one"}, {"name": "other"}]}}},
        "templates": {"model": "demo"},
        "limits": {"limits": [{"per": "caller", "at_once": 10, "tokens_per_day": 1_000_000}]},
        "documents": {"embed": "demo-embed"},
    }
    chains = {"chat": CHAIN.split(", "), "embeddings": ["usage", "cache"], "internal": ["cache"]}
    told = {
        "database": {"url": f"sqlite:///{folder}/records.db"},
        "stores": {"texts": {"lancedb": f"{folder}/lance"}},
        "plugins": plugins,
        "chains": chains,
    }
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in told.items()) + KEYS


@pytest.fixture
async def run(start: Start, tmp_path: Path) -> AsyncIterator[Running]:
    async with start(config(tmp_path)) as running:
        yield running


@pytest.fixture
async def alice(run: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with run.client(api_key="a-key") as client:
        yield client


async def get(run: Running, path: str, key: str = "a-key", method: str = "GET", **body: Any) -> Any:
    said: dict[str, Any] = {"json": body} if body else {}
    headers = {"Authorization": f"Bearer {key}"}
    async with run.http.request(method, f"{run.url}{path}", headers=headers, **said) as response:
        text = await response.text()
        assert response.status in (200, 201), text
        return json.loads(text)


async def added(run: Running) -> None:
    told = await get(run, "/api/rag/documents", method="POST", title="Lanterns", content=LIGHT, wait=30)
    assert told["status"] == "ready"


async def test_a_response_uses_a_prompt_and_goes_on_in_a_conversation(run: Running, alice: openai.AsyncOpenAI) -> None:
    talk = await alice.conversations.create(metadata={"topic": "lights"})
    first = await alice.responses.create(model="demo", input="I am called Ann.", conversation=talk.id)
    assert first.conversation is not None and first.conversation.id == talk.id
    second = await alice.responses.create(model="demo", input="Who am I?", conversation=talk.id)
    assert run.ollama.seen[-1].body["messages"][0]["content"] == "I am called Ann."
    items = [one async for one in alice.conversations.items.list(talk.id, order="asc")]
    assert [getattr(one, "role", None) for one in items] == ["user", "assistant", "user", "assistant"]
    assert second.output_text in str(items[-1].to_dict())
    await alice.responses.create(model="demo", input="Sing.", conversation=talk.id, instructions="Be a bird.")
    assert run.ollama.seen[-1].body["messages"][0] == {"role": "system", "content": "Be a bird."}
    await alice.responses.create(model="demo", input="Speak.", conversation=talk.id)
    assert "bird" not in str(run.ollama.seen[-1].body), "instructions are for one response"
    filled = await alice.responses.create(prompt={"id": "summarize", "variables": {"text": LIGHT}})
    assert "Mabel Quill" in json.dumps(run.ollama.seen[-1].body["messages"]) and filled.status == "completed"
    assert (await alice.responses.retrieve(filled.id)).output_text == filled.output_text
    with pytest.raises(openai.BadRequestError) as caught:
        await alice.responses.create(prompt={"id": "summarize", "variables": {"nope": LIGHT}})
    assert caught.value.param == "prompt.variables"


async def test_a_grounded_answer_is_remembered_without_its_passages(run: Running, alice: openai.AsyncOpenAI) -> None:
    await added(run)
    extra = {"rag": True, "conversation": "c1"}
    for _ in range(2):
        raw = await alice.chat.completions.with_raw_response.create(
            model="demo", messages=[{"role": "user", "content": QUESTION}], extra_body=extra
        )
        assert raw.headers["x-gemmapy-rag"] == "1 passage of 1" and raw.headers["x-gemmapy-conversation"] == "c1"
    asked = run.ollama.seen[-1].body["messages"]
    asked_by_user = [one["content"] for one in asked if one["role"] == "user"]
    assert [("Mabel Quill" in one) for one in asked_by_user] == [False, True], "only the last has passages"
    kept = await get(run, "/api/conversations/c1")
    assert [one["content"] for one in kept["messages"] if one["role"] == "user"] == [QUESTION] * 2


async def test_a_stream_tells_text_and_sources_through_everything(run: Running, alice: openai.AsyncOpenAI) -> None:
    await added(run)
    stream = await alice.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": QUESTION}],
        stream=True,
        store=True,
        stream_options={"include_usage": True},
        extra_body={"rag": True},
    )
    chunks = [one async for one in stream]
    sources = [one for chunk in chunks for choice in chunk.choices for one in getattr(choice.delta, "sources", [])]
    assert [one["title"] for one in sources] == ["Lanterns"] and chunks[-1].usage is not None
    kept = await alice.chat.completions.retrieve(chunks[0].id)
    said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert kept.choices[0].message.content == said


async def test_all_that_is_kept_of_a_caller_is_told_and_deleted(run: Running, alice: openai.AsyncOpenAI) -> None:
    await added(run)
    await get(
        run, "/api/templates/custom", method="POST", name="mine", description="d", category="writing",
        messages=[{"role": "user", "content": "Say {{word}}"}], variables={"word": {"type": "string"}},
    )  # fmt: skip
    await alice.responses.create(model="demo", input="hello", conversation="c1")
    await alice.chat.completions.create(
        model="template:mine", messages=[], store=True, extra_body={"template": {"variables": {"word": "hush"}}}
    )
    await run.settled()
    told = (await get(run, "/api/me/data"))["data"]
    counts = {name: len(things) for name, things in told.items()}
    some = {name: counts[name] for name in ("usage", "cache")}
    once = ("experiments", "templates", "conversations", "documents")
    assert counts == {"stored": 2, **dict.fromkeys(once, 1), **some}
    assert some["usage"] >= 3 and some["cache"] >= 2
    assert told["documents"][0]["content"] == LIGHT and "hush" in json.dumps(told["stored"])
    gone = await get(run, "/api/me/data", method="DELETE")
    assert gone["deleted"] == counts
    assert not any((await get(run, "/api/me/data"))["data"].values())
    assert (await get(run, "/api/rag/search", method="POST", query=QUESTION))["results"] == []
