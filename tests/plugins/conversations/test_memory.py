"""How much of a conversation is sent to the model, and what happens to the rest."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from plugins.conversations.messages import StoredMessage, letters
from plugins.conversations.store import Cut
from plugins.conversations.window import Room, exchanges, kept_from
from proxy.types import Message, ToolCall
from proxy.upstreams.demo import Said as Answer
from proxy.upstreams.demo import Simulator
from tests.conftest import ASK, Running, Start
from tests.plugins.conversations.asking import A, Json, asks, config, echo, kept, say, store_of, talk_of
from tests.whole.asking import asked

ROLES = {"u": "user", "a": "assistant", "t": "tool", "s": "system"}


def turns(roles: str) -> list[StoredMessage]:
    made = []
    for index, one in enumerate(roles):
        calls = (ToolCall("c", "f", "{}"),) if roles[index + 1 : index + 2] == "t" and one == "a" else ()
        made.append(StoredMessage(Message(ROLES[one], f"{index:03}", tool_calls=calls), position=index + 1))  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize(
    ("roles", "starts"),
    [("", []), ("uaua", [0, 2]), ("uuaua", [0, 3]), ("uatatau", [0, 6]), ("au", [0, 1]), ("tau", [0, 2])],
)
def test_an_exchange_is_a_question_and_everything_up_to_the_next(roles: str, starts: list[int]) -> None:
    assert exchanges(turns(roles)) == starts


def test_a_full_window_is_halved_at_an_exchange_boundary() -> None:
    room = Room(None, 4, 3.0)
    assert kept_from(room, 0, turns("uauauaua"), [Message("user", "x")]) == 0
    assert kept_from(room, 0, turns("uauauauaua"), [Message("user", "x")]) == 6
    long = turns("uatauatauataua")
    assert letters([one.message for one in long]) == 14 * 3 + 3 * 2
    start = kept_from(Room(45, None, 1.0), 0, long, [])
    assert start == 8 and long[start].message.role == "user"


def test_an_overlong_question_is_sent_alone_but_a_tool_result_is_not() -> None:
    assert kept_from(Room(10, None, 1.0), 0, turns("uaua"), [Message("user", "x" * 100)]) == 4
    assert kept_from(Room(10, None, 1.0), 0, turns("uaua"), [Message("tool", "x" * 100)]) == 2


def prompts_sent(run: Running) -> list[list[Json]]:
    return [body["messages"] for body in asked(run.ollama)]


async def test_prompts_keep_the_same_prefix_for_many_turns(start: Start, database_url: str) -> None:
    async with start(config(database_url, window={"turns": 8}), echo()) as run:
        memory = []
        for number in range(24):
            response = await run.http.post(
                f"{run.url}/v1/chat/completions",
                json={**ASK, "messages": [{"role": "user", "content": f"word {number}"}], "conversation": "t"},
                headers=A,
            )
            memory.append(response.headers.get("x-gemmapy-memory"))
        prompts = prompts_sent(run)
        whole = await kept(run)
    stable = [after[: len(before)] == before for before, after in pairwise(prompts)]
    assert stable.count(False) == 3, "only 3 of 24 prompts do not start with the previous prompt"
    assert max(map(len, prompts)) == 17 and all(one[0]["role"] == "user" for one in prompts)
    assert memory[8] is None and memory[9] == "told=8, left_out=10" and len(whole) == 48


async def test_instructions_added_as_items_are_in_every_prompt(start: Start, database_url: str) -> None:
    async with start(config(database_url, "stored, conversations", window={"turns": 4}), echo()) as run:
        items = [{"role": "developer", "content": "be brief"}, {"role": "system", "content": "be kind"}]
        talk = (await asks(run, "POST", "/v1/conversations", json={"items": items}))["id"]
        for number in range(9):
            await say(run, f"word {number}", talk)
        heads = [[one["content"] for one in prompt if one["role"] == "system"] for prompt in prompts_sent(run)]
        assert {"\n\n".join(one) for one in heads} == {"be brief\n\nbe kind"}
        body = {"model": "demo", "input": "more", "instructions": "in French", "conversation": talk}
        await asks(run, "POST", "/v1/responses", json=body)
        assert prompts_sent(run)[-1][0]["content"] == "be brief\n\nbe kind\n\nin French"
        await say(run, "and more", talk)
        assert prompts_sent(run)[-1][0]["content"] == "be brief\n\nbe kind", (
            "a response's instructions apply to it only"
        )
        listed = await asks(run, "GET", f"/v1/conversations/{talk}/items?order=asc&limit=2")
        assert [one["role"] for one in listed["data"]] == ["developer", "system"], "they are listed as items"


async def test_the_upstreams_prompt_cache_covers_all_but_new_messages(start: Start, database_url: str) -> None:
    async with start(config(database_url), echo()) as run:
        await say(run, "a long beginning " * 50)
        cached = []
        for number in range(3):
            body = {**ASK, "messages": [{"role": "user", "content": f"more {number}"}], "conversation": "t"}
            usage = (await asks(run, "POST", "/v1/chat/completions", json=body))["usage"]
            cached.append(usage["prompt_tokens_details"]["cached_tokens"] / usage["prompt_tokens"])
    assert min(cached[1:]) > 0.9, (
        "the first is left out: the long first answer was generated, and not yet part of a prompt"
    )


async def test_the_window_fits_the_configured_context(start: Start, tmp_path: Any) -> None:
    more = "models: {demo: {num_ctx: 512}}\n"
    async with start(config(f"sqlite:///{tmp_path}/x.db", more=more), echo()) as run:
        for number in range(12):
            await say(run, f"{number} " + "some words " * 20, max_tokens=100)
        sizes = [sum(len(one["content"]) for one in messages) for messages in prompts_sent(run)]
        talk = await talk_of(run)
    assert talk.first > 1 and max(sizes) < 412 * 5 and max(sizes) > 500


@pytest.mark.parametrize("described", ["", "It tells the weather of towns. " * 60])
async def test_estimates_of_tokens_do_not_count_the_tools_as_text(start: Start, tmp_path: Any, described: str) -> None:
    function = {"name": "weather", "description": described, "parameters": {"type": "object"}}
    more: Json = {"tools": [{"type": "function", "function": function}]} if described else {}
    room = f"models: {{demo: {{num_ctx: {2048 if described else 1024}}}}}\n"
    async with start(config(f"sqlite:///{tmp_path}/x.db", more=room), echo()) as run:
        for text in ("I am Ada", "understanding " * (150 if described else 100)):
            await say(run, text, **more)
        assert prompts_sent(run)[-1][0]["content"] == "I am Ada" and (await talk_of(run)).first == 1


async def test_an_overlong_prompt_is_shortened_and_sent_again(start: Start, database_url: str) -> None:
    """Ollama loads the model with a smaller context than it was trained for, which is unknown before it is loaded."""
    async with start(config(database_url), echo()) as run:
        both = [{"role": "user", "content": "b " * 300}, {"role": "assistant", "content": "b " * 300}]
        await asks(run, "POST", "/api/conversations", status=201, json={"id": "t", "messages": both * 10})
        body = {**ASK, "conversation": "t"}
        first = await run.http.post(f"{run.url}/v1/chat/completions", json=body, headers=A)
        assert first.status == 200 and first.headers["x-gemmapy-memory"].startswith("told=")
        began = (await talk_of(run)).first
        assert 1 < began < 20
        # A single overlong question is an error, and does not push earlier messages out of the window.
        long = {**body, "messages": [{"role": "user", "content": "word " * 5000}]}
        told = await asks(run, "POST", "/v1/chat/completions", status=400, json=long)
        assert told["error"]["code"] == "context_length_exceeded"
        assert (await talk_of(run)).first == began


async def test_the_window_fits_the_context_that_the_model_is_loaded_with(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db"), echo()) as run:
        await say(run, "hi", None)
        both = [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "word " * 300}]
        await asks(run, "POST", "/api/conversations", status=201, json={"id": "t", "messages": both * 4})
        begun = run.ollama.started
        await say(run, "more")
        assert run.ollama.started == begun + 1 and len(prompts_sent(run)[-1]) < 9


async def test_the_start_of_the_window_never_moves_back(start: Start, database_url: str) -> None:
    async with start(config(database_url), echo()) as run:
        await say(run, "hi")
        store, talk = store_of(run), await talk_of(run)
        async with store.database.writing() as connection:
            await store.leave_out(connection, talk, Cut(3))
            await store.leave_out(connection, talk, Cut(2))
        assert (await talk_of(run)).first == 3


def remembering(body: Json) -> Answer | None:
    if not body["messages"]:
        return None
    last, first = body["messages"][-1]["content"], body["messages"][0]["content"]
    if first.startswith("You keep the memory"):
        return Answer(f"summary of {last.count('user:')} and {'more' if 'summary_so_far' in last else 'no more'}")
    return Answer("A Fine Title" if first.startswith("Give this") else f"heard {last}")


async def test_messages_left_out_are_summarised_in_the_prompt(start: Start, database_url: str) -> None:
    settings: Json = {"window": {"turns": 4}, "summarise": {"model": "demo-rendered", "keep": 1}}
    async with start(config(database_url, **settings), Simulator(say=remembering)) as run:
        for number in range(10):
            await say(run, f"word {number}")
        chats = [one for one in prompts_sent(run) if not one[0]["content"].startswith("You keep")]
        assert [one["content"] for one in chats[5]] == [
            "Summary of what was said before:\n\nsummary of 4 and no more", "word 4", "heard word 4", "word 5",
        ]  # fmt: skip
        assert chats[6][: len(chats[5])] == chats[5]
        found = (await asks(run, "GET", "/api/conversations/t"))["summaries"]
        assert [(one["text"], one["up_to"], one["model"]) for one in found] == [
            ("summary of 4 and no more", 8, "demo-rendered"),
            ("summary of 4 and more", 16, "demo-rendered"),
        ]  # fmt: skip
        response = await run.http.post(f"{run.url}/v1/chat/completions", json={**ASK, "conversation": "t"}, headers=A)
        assert response.headers["x-gemmapy-memory"] == "told=4, left_out=16, summarised_up_to=16"


async def test_a_failed_summary_is_made_up_for_later(start: Start, tmp_path: Any) -> None:
    url, window = f"sqlite:///{tmp_path}/x.db", {"turns": 4}
    ollama = Simulator(say=remembering)
    async with start(config(url, window=window, summarise={"model": "nobody-has-it"}), ollama) as run:
        for number in range(6):
            await say(run, f"word {number}")
        assert (await talk_of(run)).first > 1
        run.configure(config(url, window=window, summarise={}))
        assert await run.server.reload()
        for number in range(6, 9):
            await say(run, f"word {number}")
        (summary,) = (await asks(run, "GET", "/api/conversations/t"))["summaries"]
    assert (summary["text"], summary["up_to"]) == ("summary of 6 and no more", 12)


async def test_a_failed_summary_does_not_fail_the_call(start: Start, tmp_path: Any) -> None:
    settings: Json = {"window": {"turns": 2}, "summarise": {"model": "nobody-has-it"}}
    async with start(config(f"sqlite:///{tmp_path}/x.db", **settings), echo()) as run:
        for number in range(4):
            await say(run, f"word {number}")
        response = await run.http.post(f"{run.url}/v1/chat/completions", json={**ASK, "conversation": "t"}, headers=A)
        assert response.headers["x-gemmapy-memory"] == "told=4, left_out=4, summary=failed"
        assert len(prompts_sent(run)[-1]) < 6 and len(await kept(run)) == 10


@pytest.mark.parametrize(("word", "context"), [("word ", 1024), ("b ", 1024), ("word ", 64)])
async def test_a_long_history_is_summarised_in_pieces(start: Start, tmp_path: Any, word: str, context: int) -> None:
    settings: Json = {"window": {"turns": 10}, "summarise": {"model": "demo-rendered", "keep": 1}}
    small = f"models: {{demo-rendered: {{num_ctx: {context}}}}}\n"
    text = config(f"sqlite:///{tmp_path}/x.db", more=small, **settings)
    async with start(text, Simulator(say=remembering)) as run:
        both = [{"role": role, "content": word * 120} for role in ("user", "assistant")]
        await asks(run, "POST", "/api/conversations", status=201, json={"id": "t", "messages": both * 11})
        body = {**ASK, "conversation": "t"}
        response = await run.http.post(f"{run.url}/v1/chat/completions", json=body, headers=A)
        assert response.status == 200, "a failed summary must not fail the call"
        found = (await asks(run, "GET", "/api/conversations/t"))["summaries"]
        memory = response.headers["x-gemmapy-memory"]
    if context == 64:
        assert not found and memory == "told=2, left_out=20, summary=failed"
    else:
        assert [(one["up_to"], one["text"][-8:]) for one in found] == [(20, "and more")]
        assert memory == "told=2, left_out=20, summarised_up_to=20"


async def test_a_model_makes_the_title_and_the_caller_can_change_it(start: Start, tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    async with start(config(url, title_model="demo-rendered"), Simulator(say=remembering)) as run:
        await say(run, "what is the weather like today?")
        async with asyncio.timeout(10):
            while (await talk_of(run)).title != "A Fine Title":  # noqa: ASYNC110  (there is no event)
                await asyncio.sleep(0.01)
        await asks(run, "PUT", "/api/conversations/t", json={"title": "Mine"})
        await say(run, "more")
        assert (await talk_of(run)).title == "Mine"
