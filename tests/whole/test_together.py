"""All features in one chain, through the stock SDK."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conftest import Running, Start
from tests.whole.asking import asked, data_url, error_of, picture, user

CHAIN = "stored, usage, experiments, templates, limits, conversations, documents, cache, fallback, retry"
A = {"Authorization": "Bearer a-key"}
KEYS = "keys: {alice: a-key, bob: b-key}\n"
LIGHT = "The lantern of Porthgwarra was lit in 1891. Its keeper was Mabel Quill, who painted it green."
QUESTION = "When was the lantern of Porthgwarra lit?"

TONE = {
    "status": "draft",
    "variants": [
        {"name": "plain"},
        {"name": "kind", "system": "Be kind."},
        {"name": "other", "template": "moderate"},
    ],
}


def config(folder: Path) -> str:
    plugins = {
        **{name: {} for name in CHAIN.split(", ")},
        "experiments": {"experiments": {"same": {"variants": [{"name": "one"}, {"name": "other"}]}, "tone": TONE}},
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


async def test_a_response_uses_a_prompt_and_continues_a_conversation(run: Running, alice: openai.AsyncOpenAI) -> None:
    talk = await alice.conversations.create(metadata={"topic": "lights"})
    first = await alice.responses.create(model="demo", input="I am called Ann.", conversation=talk.id)
    assert first.conversation is not None and first.conversation.id == talk.id
    second = await alice.responses.create(model="demo", input="Who am I?", conversation=talk.id)
    assert asked(run.ollama)[-1]["messages"][0]["content"] == "I am called Ann."
    items = [one async for one in alice.conversations.items.list(talk.id, order="asc")]
    assert [getattr(one, "role", None) for one in items] == ["user", "assistant", "user", "assistant"]
    assert second.output_text in str(items[-1].to_dict())
    await alice.responses.create(model="demo", input="Sing.", conversation=talk.id, instructions="Be a bird.")
    assert asked(run.ollama)[-1]["messages"][0] == {"role": "system", "content": "Be a bird."}
    await alice.responses.create(model="demo", input="Speak.", conversation=talk.id)
    assert "bird" not in str(asked(run.ollama)[-1]), "instructions apply to one response only"
    filled = await alice.responses.create(prompt={"id": "summarize", "variables": {"text": LIGHT}})
    assert "Mabel Quill" in json.dumps(asked(run.ollama)[-1]["messages"]) and filled.status == "completed"
    assert (await alice.responses.retrieve(filled.id)).output_text == filled.output_text
    with pytest.raises(openai.BadRequestError) as caught:
        await alice.responses.create(prompt={"id": "summarize", "variables": {"nope": LIGHT}})
    assert caught.value.param == "prompt.variables"
    for more in ({}, {"background": True}):
        body = {"prompt": {"id": "nothing"}, "stream": True, **more}
        async with run.http.post(f"{run.url}/v1/responses", json=body, headers=A) as response:
            assert '"param":"prompt.id"' in await response.text()


async def test_a_response_can_refer_to_items_of_the_callers_conversations_only(
    run: Running, alice: openai.AsyncOpenAI
) -> None:
    said: Any = [{"type": "message", "role": "user", "content": "I am called Ann."}]
    talk = await alice.conversations.create(items=said)
    id = (await alice.conversations.items.list(talk.id)).data[0].id
    refers: Any = [{"type": "item_reference", "id": id}, {"role": "user", "content": "Who am I?"}]
    ways: list[Any] = [{}, {"store": False}]
    for more in ways:
        await alice.responses.create(model="demo", input=refers, temperature=0.1 * len(more), **more)
        assert [one["content"] for one in asked(run.ollama)[-1]["messages"]] == ["I am called Ann.", "Who am I?"]
    async with run.client(api_key="b-key") as bob:
        with pytest.raises(openai.NotFoundError) as caught:
            await bob.responses.create(model="demo", input=refers)
    assert caught.value.param == "input[0].id"


async def test_tool_outputs_are_matched_to_calls_in_the_stored_history(run: Running, alice: openai.AsyncOpenAI) -> None:
    weather: Any = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}, "strict": False}
    talk = await alice.conversations.create()
    ways: list[Any] = [{"conversation": talk.id}, {"store": True}]
    for way in ways:
        first = await alice.responses.create(
            model="demo", input="Ask get_weather.", tools=[weather], tool_choice="required", **way
        )
        call = next(one for one in first.output if one.type == "function_call")
        answer: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "4 degrees"}]
        back = way if "conversation" in way else {"previous_response_id": first.id}
        assert "4 degrees" in (await alice.responses.create(model="demo", input=answer, **back)).output_text
        answer[0]["call_id"] = "c9"
        with pytest.raises(openai.BadRequestError, match="No tool call found for function call output with call_id c9"):
            await alice.responses.create(model="demo", input=answer, **back)
    header = {"x-gemmapy-conversation": talk.id}
    with pytest.raises(openai.BadRequestError) as caught:
        await alice.responses.create(model="demo", input="x", previous_response_id=first.id, extra_headers=header)
    assert caught.value.param == "previous_response_id"


async def test_a_conversations_title_is_the_callers_text_and_not_the_rendered_template(run: Running) -> None:
    await get(
        run, "/v1/chat/completions", method="POST", model="template:summarize", conversation="c2",
        messages=[{"role": "user", "content": f"\0{LIGHT}"}],
    )  # fmt: skip
    kept = await get(run, "/api/conversations/c2")
    assert "\0" not in kept["title"]
    assert LIGHT.startswith(kept["title"].removesuffix("…")) and kept["messages"][0]["content"] != LIGHT


async def test_a_conversation_keeps_a_templates_instructions_but_not_those_for_one_call(
    run: Running, alice: openai.AsyncOpenAI
) -> None:
    said: Any = [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": LIGHT}]

    async def kept(id: str, arm: str) -> tuple[str, list[str]]:
        extra = {"conversation": id, "experiment": {"name": "tone", "variant": arm}}
        await alice.chat.completions.create(model="template:summarize", messages=said, extra_body=extra)
        talk = await get(run, f"/api/conversations/{id}")
        return talk["system_prompt"], [one["role"] for one in talk["messages"]]

    own, turns = await kept("c1", "plain")
    assert own.endswith("\n\nRhyme.") and turns == ["user", "assistant"]
    assert await kept("c2", "kind") == (own, turns)
    told = asked(run.ollama)[-1]["messages"]
    assert [one["role"] for one in told] == ["system", "user"] and told[0]["content"].endswith("\n\nBe kind.")
    assert await kept("c3", "other") == ("Rhyme.", turns), (
        "instructions of a template chosen by an experiment are not kept"
    )
    prompt: Any = {"id": "summarize", "variables": {"text": LIGHT}}
    talk = await alice.conversations.create()
    await alice.responses.create(prompt=prompt, instructions="Rhyme.", input="Go.", conversation=talk.id)
    roles = [getattr(one, "role", None) async for one in alice.conversations.items.list(talk.id, order="asc")]
    assert roles == ["user", "user", "assistant"], "a response's instructions apply to it alone"


async def test_the_error_for_an_unsupported_image_names_the_field_that_the_client_sent(run: Running) -> None:
    async def refused(**body: Any) -> tuple[str, str]:
        told = {"model": "demo", "conversation": "c1", "messages": picture(data_url()), **body}
        error = await error_of(await run.http.post(f"{run.url}/v1/chat/completions", json=told, headers=A), 400)
        assert error["code"] == "model_not_capable"
        return error["param"], error["message"]

    await get(run, "/v1/chat/completions", method="POST", model="demo", conversation="c1", messages=user("Hello!"))
    for more in ({}, {"template": "summarize"}):
        assert (await refused(**more))[0] == "messages[0].content"
    await get(
        run, "/v1/chat/completions", method="POST",
        model="demo-vision", conversation="c1", messages=picture(data_url()),
    )  # fmt: skip
    param, message = await refused(messages=user("And what else?"))
    assert param == "conversation" and message.endswith("and there are some in the conversation.")


async def test_a_conversation_stores_a_grounded_answer_without_its_passages(
    run: Running, alice: openai.AsyncOpenAI
) -> None:
    await added(run)
    extra = {"rag": True, "conversation": "c1"}
    for _ in range(2):
        raw = await alice.chat.completions.with_raw_response.create(
            model="demo", messages=[{"role": "user", "content": QUESTION}], extra_body=extra
        )
        assert raw.headers["x-gemmapy-rag"] == "1 passage of 1" and raw.headers["x-gemmapy-conversation"] == "c1"
    sent = asked(run.ollama)[-1]["messages"]
    asked_by_user = [one["content"] for one in sent if one["role"] == "user"]
    assert [("Mabel Quill" in one) for one in asked_by_user] == [False, True], "only the last message has passages"
    kept = await get(run, "/api/conversations/c1")
    assert [one["content"] for one in kept["messages"] if one["role"] == "user"] == [QUESTION] * 2
    long: Any = [{"role": "user", "content": "understanding " * 450}]
    await alice.chat.completions.create(model="demo", messages=long, extra_body={"conversation": "c1"})
    assert len(asked(run.ollama)[-1]["messages"]) == 5, "passages must not count towards the length of the history"


async def test_a_stream_keeps_text_and_sources_through_the_whole_chain(run: Running, alice: openai.AsyncOpenAI) -> None:
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


async def test_all_data_of_a_caller_is_exported_and_deleted(run: Running, alice: openai.AsyncOpenAI) -> None:
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
