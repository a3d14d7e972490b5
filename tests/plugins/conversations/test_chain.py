"""A call that names a conversation gets its history, and adds its messages and answer to it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from sqlalchemy import select

from plugins.conversations.conversation import HEADER
from plugins.conversations.messages import same
from plugins.conversations.store import Store
from plugins.conversations.tables import TALKS
from proxy import config as configuration
from proxy import registry
from proxy.errors import Busy, ConfigError
from proxy.types import Image, Message
from proxy.upstreams.demo import Fault, Said, Simulator
from tests.conftest import ASK, Start
from tests.plugins.conversations.asking import OPS, A, B, asks, config, echo, kept, say, store_of, talk_of, texts
from tests.whole.asking import asked, streamed


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


async def test_a_call_adds_only_new_messages_to_the_conversation(start: Start, database_url: str) -> None:
    async with start(config(database_url), echo()) as run:
        await say(run, [{"role": "system", "content": "be brief"}, user("one")])
        await say(run, "two", None, conversation={"id": "t"})
        answer = await run.http.post(
            f"{run.url}/v1/chat/completions",
            json={**ASK, "messages": [user("three")], "stream": True},
            headers={**A, "x-gemmapy-conversation": "t"},
        )
        assert (await streamed(answer)).text() == "heard three"
        assert answer.headers["x-gemmapy-conversation"] == "t"
        told = [[one["content"] for one in body["messages"]] for body in asked(run.ollama)]
        assert told == [
            ["be brief", "one"],
            ["be brief", "one", "heard one", "two"],
            ["be brief", "one", "heard one", "two", "heard two", "three"],
        ]
        found = await kept(run)
        assert texts(found) == ["one", "heard one", "two", "heard two", "three", "heard three"]
        assert [one.position for one in found] == [1, 2, 3, 4, 5, 6]
        last = found[-1]
        assert (last.status, last.finish, last.model, last.call) == (
            "complete", "stop", "demo:latest", answer.headers["x-request-id"],
        )  # fmt: skip
        assert last.usage is not None and last.usage.prompt_tokens and last.usage.completion_tokens
        talk = await talk_of(run)
        assert (talk.system, talk.title, talk.messages) == ("be brief", "one", 6)


async def test_reasoning_and_tool_calls_are_stored_and_sent_again(start: Start, database_url: str) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    said = [Said(thinking="hm", tool_calls=(("look", {"at": "x"}),)), Said("it is x"), Said("bye")]
    answers = iter(said)
    ollama = Simulator(say=lambda body: next(answers) if body["messages"] else None)
    async with start(config(database_url), ollama) as run:
        response = await run.http.post(
            f"{run.url}/v1/chat/completions",
            json={**ASK, "model": "demo-thinking", "tools": tools, "conversation": "t"},
            headers=A,
        )
        call = (await response.json())["choices"][0]["message"]["tool_calls"][0]
        await say(run, [{"role": "tool", "tool_call_id": call["id"], "content": "x"}], model="demo-thinking")
        await say(run, "thanks", model="demo-thinking")
        messages = asked(run.ollama)[-1]["messages"]
    assert [one["role"] for one in messages] == ["user", "assistant", "tool", "assistant", "user"]
    assert messages[1]["thinking"] == "hm" and messages[1]["tool_calls"][0]["function"]["arguments"] == {"at": "x"}


async def test_a_client_that_resends_the_history_does_not_duplicate_it(start: Start, database_url: str) -> None:
    async with start(config(database_url), echo()) as run:
        await say(run, "one")
        history = [user("one"), assistant("heard one")]
        await say(run, [*history, user("two")])
        assert texts(await kept(run)) == ["one", "heard one", "two", "heard two"]
        # An answer differs in one word, so this is not the stored history but new messages.
        await say(run, [user("one"), assistant("heard two"), user("three")])
        assert texts(await kept(run))[4:] == ["one", "heard two", "three", "heard three"]
        await say(run, [user("one")])  # the same question again is a new message
        assert texts(await kept(run))[8:] == ["one", "heard one"]


async def test_resent_system_messages_are_not_duplicated_either(start: Start, database_url: str) -> None:
    async with start(config(database_url), echo()) as run:
        be: dict[str, Any] = {"role": "system", "content": "be brief"}
        body = {"id": "t", "messages": [be, user("one")]}
        await asks(run, "POST", "/api/conversations", status=201, json=body)
        await asks(run, "POST", "/api/conversations/t/generate", json={"model": "demo"})
        await say(run, [be, user("one"), assistant("heard one"), user("two")])
        assert texts(await kept(run)) == ["be brief", "one", "heard one", "two", "heard two"]
        assert [one["content"] for one in asked(run.ollama)[-1]["messages"]] == ["be brief", "one", "heard one", "two"]
        await say(run, [{**be, "content": "be kind"}, user("one"), assistant("heard one"), user("three")])
        assert texts(await kept(run))[5:] == ["three", "heard three"] and (await talk_of(run)).system == "be kind"


async def test_an_answer_that_breaks_off_is_stored_as_cut(start: Start, database_url: str) -> None:
    async with start(config(database_url), Simulator(faults=[Fault("eof", after=3)])) as run:
        told = await run.http.post(
            f"{run.url}/v1/chat/completions", json={**ASK, "stream": True, "conversation": "t"}, headers=A
        )
        assert "[DONE]" not in await told.text()
        asked, given = await kept(run)
        assert (asked.status, given.status, given.finish) == ("complete", "cut", "") and given.message.text
        await say(run, "go on")
        assert len(await kept(run)) == 4


async def test_cut_off_answers_can_be_dropped_by_a_setting(start: Start, database_url: str) -> None:
    ollama = Simulator(faults=[Fault("eof", after=3)])
    async with start(config(database_url, cut="drop"), ollama) as run:
        await (
            await run.http.post(
                f"{run.url}/v1/chat/completions", json={**ASK, "stream": True, "conversation": "t"}, headers=A
            )
        ).read()
        await say(run, "go on")
        assert len(await kept(run)) == 2


async def test_a_client_that_disconnects_releases_its_turn(start: Start, database_url: str) -> None:
    async with start(config(database_url), Simulator(faults=[Fault("stall", after=2)])) as run:
        response = await run.http.post(
            f"{run.url}/v1/chat/completions",
            json={**ASK, "stream": True, "conversation": "t", "max_tokens": 500},
            headers=A,
        )
        await response.content.readany()
        response.close()
        await say(run, "again")
        found = await kept(run)
    assert [one.status for one in found] == ["complete", "left", "complete", "complete"]


async def test_an_abandoned_answer_is_stored_although_the_server_stops(start: Start, database_url: str) -> None:
    async with start(config(database_url), Simulator(faults=[Fault("stall", after=2)])) as run:
        body = {**ASK, "stream": True, "conversation": "t", "max_tokens": 500}
        response = await run.http.post(f"{run.url}/v1/chat/completions", json=body, headers=A)
        await response.content.readany()
        response.close()
    async with start(config(database_url)) as run:
        assert [one.status for one in await kept(run)] == ["complete", "left"]
        await say(run, "go on")


async def test_a_failed_call_stores_nothing_and_releases_its_turn(start: Start, database_url: str) -> None:
    async with start(config(database_url), Simulator(faults=[Fault("status")])) as run:
        await asks(run, "POST", "/v1/chat/completions", status=502, json={**ASK, "conversation": "t"})
        assert (await asks(run, "GET", "/api/conversations"))["data"] == []
        await say(run, "two")
        assert texts(await kept(run))[0] == "two" and len(await kept(run)) == 2


async def test_a_call_that_fails_leaves_what_was_there_before(start: Start, database_url: str) -> None:
    """Also an empty conversation that was made on purpose."""
    async with start(config(database_url), Simulator(faults=[Fault("status")])) as run:
        await asks(run, "POST", "/api/conversations", status=201, json={"id": "t"})
        await asks(run, "POST", "/v1/chat/completions", status=502, json={**ASK, "conversation": "t"})
        assert [one["id"] for one in (await asks(run, "GET", "/api/conversations"))["data"]] == ["t"]
        async with store_of(run).database.reading() as connection:
            rows = await connection.execute(select(TALKS.c.holder, TALKS.c.held_until))
            assert rows.one() == ("", 0), "other processes need not wait until the lease ends"
        await say(run, "two")


async def test_a_turn_that_cannot_be_given_back_in_the_database_is_over_in_its_process(
    start: Start, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> None:
        raise Busy("away")

    monkeypatch.setattr(Store, "undo", away)
    async with start(config(f"sqlite:///{tmp_path}/x.db"), Simulator(faults=[Fault("status")])) as run:
        answer = await run.http.post(f"{run.url}/v1/chat/completions", json={**ASK, "conversation": "t"}, headers=A)
        assert answer.status in (502, 503)
        found = run.server.services.state["conversations turns"]
        assert not found.held and not found.lines


WRONG: list[tuple[dict[str, Any], dict[str, str], int, str]] = [
    ({"conversation": 1}, {}, 400, "invalid_type"),
    ({"conversation": {"id": "a", "x": 1}}, {}, 400, "invalid_type"),
    ({"conversation": "a b"}, {}, 400, "invalid_value"),
    ({"conversation": ""}, {}, 400, "invalid_value"),
    ({"conversation": "a"}, {"x-gemmapy-conversation": "b"}, 400, "invalid_value"),
    ({"conversation": "a", "n": 2}, {}, 400, "invalid_value"),
    ({"conversation": "a"}, {}, 404, "conversation_not_found"),
]


async def test_invalid_conversation_ids_are_refused(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", unknown="refuse")) as run:
        for body, headers, status, code in WRONG:
            sent = {**ASK, **body}
            told = await asks(run, "POST", "/v1/chat/completions", {**A, **headers}, status, json=sent)
            assert told["error"]["code"] == code and told["error"]["param"] in ("conversation", "n"), (body, headers)


async def test_only_chats_can_use_conversations(start: Start, tmp_path: Any) -> None:
    text = config(f"sqlite:///{tmp_path}/x.db").replace('"completions": []', '"completions": ["conversations"]')
    async with start(text) as run:
        body = {"model": "demo", "prompt": "x", "conversation": "t"}
        told = await asks(run, "POST", "/v1/completions", status=400, json=body)
    assert told["error"]["code"] == "conversation_not_for_this"


CALLS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "x"}),
    ("/v1/embeddings", {"model": "demo-embed", "input": "x"}),
    ("/v1/responses/input_tokens", {"input": "x"}),
    ("/api/generate", {"prompt": "x"}),
    ("/api/embed", {"model": "demo-embed", "input": "x"}),
]


@pytest.mark.parametrize(("path", "body"), CALLS, ids=[path for path, _ in CALLS])
@pytest.mark.parametrize("name", ["x-gemmapy-conversation", "X-GemmaPy-Cache-TTL", "x-gemmapy-Nothing"])
async def test_a_header_that_has_no_effect_is_reported(
    start: Start, tmp_path: Any, path: str, body: dict[str, Any], name: str
) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db")) as run:
        document = {"model": "demo", **body}
        async with run.http.post(f"{run.url}{path}", json=document, headers={**A, name: "5"}) as response:
            assert response.status == 200, await response.text()
            assert f"{name.lower()}=ignored" in response.headers["x-gemmapy-params"].split(", ")
        async with run.http.post(f"{run.url}{path}", json=document, headers=A) as response:
            assert "=ignored" not in response.headers.get("x-gemmapy-params", "")


@pytest.mark.parametrize(("path", "body"), CALLS[:2])
async def test_a_header_that_has_no_effect_is_refused_if_parameters_are_strict(
    start: Start, tmp_path: Any, path: str, body: dict[str, Any]
) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db") + "params: strict\n") as run:
        document = {"model": "demo", **body}
        async with run.http.post(f"{run.url}{path}", json=document, headers={**A, HEADER: "t"}) as response:
            assert response.status == 400 and (await response.json())["error"]["param"] == HEADER


def test_a_chain_with_the_cache_before_conversations_is_refused() -> None:
    text = config("sqlite:///x.db", "cache, conversations") + "upstreams: {a: {demo: {}}}\n"
    with pytest.raises(ConfigError, match="'conversations' stores what callers say and must come before 'cache'"):
        configuration.read("proxy.yaml", text, registry.problems_of, {})


def test_a_chat_chain_without_conversations_is_refused() -> None:
    text = config("sqlite:///x.db").replace('"chat": ["conversations"]', '"chat": []')
    with pytest.raises(
        ConfigError, match="'conversations' must be in this chain: its own endpoints send calls through it"
    ):
        configuration.read("proxy.yaml", text + "upstreams: {a: {demo: {}}}\n", registry.problems_of, {})


async def test_two_callers_can_use_the_same_conversation_id(start: Start, database_url: str) -> None:
    async with start(config(database_url), echo()) as run:
        await say(run, "a secret of alice's")
        await say(run, "mine", who=B)
        assert [one["content"] for one in asked(run.ollama)[-1]["messages"]] == ["mine"]
        assert texts(await kept(run, owner="bob")) == ["mine", "heard mine"]


async def test_fifty_concurrent_writers_lose_and_duplicate_nothing(start: Start, database_url: str) -> None:
    async with start(config(database_url), echo()) as run:
        await asyncio.gather(*(say(run, f"word {number}", stream=number % 2 == 0) for number in range(50)))
        found = await kept(run)
        sent = [[one["content"] for one in body["messages"]] for body in asked(run.ollama)]
    assert [one.position for one in found] == list(range(1, 101))
    said = texts(found)
    assert sorted(said[::2]) == sorted(f"word {number}" for number in range(50))
    assert said[1::2] == [f"heard {one}" for one in said[::2]]
    assert sorted(map(len, sent)) == list(range(1, 100, 2)), "each prompt has all earlier messages"


async def test_a_second_call_waits_for_its_turn_and_then_is_refused(start: Start, database_url: str) -> None:
    stall = Fault("stall", until=(go := asyncio.Event()))
    async with start(config(database_url, wait=0.2), Simulator(faults=[stall])) as run:
        first = asyncio.ensure_future(say(run, "one", max_tokens=3, stream=True))
        await run.ollama.until(lambda: run.ollama.started > 0)
        told = await asks(run, "POST", "/v1/chat/completions", status=409, json={**ASK, "conversation": "t"})
        assert told["error"]["code"] == "conversation_locked"
        go.set()
        await first
        await say(run, "two")
        assert len(await kept(run)) == 4


async def test_the_record_of_a_call_names_its_conversation(start: Start, tmp_path: Any) -> None:
    from tests.plugins.usage.asking import written

    async with start(config(f"sqlite:///{tmp_path}/x.db", "usage, conversations")) as run:
        await say(run, "hi")
        (row,) = await written(run, 1)
    assert row["conversation"] == "t" and json.loads(row["tags"]) == {"conversation": "t"}


async def test_changes_by_an_experiment_are_not_stored_in_the_conversation(start: Start, database_url: str) -> None:
    async with start(config(database_url, "experiments, conversations"), echo()) as run:
        kind = {"name": "kind", "system": "be kind", "model": "demo-thinking"}
        told = {"name": "tone", "variants": [{"name": "plain"}, kind]}
        await asks(run, "POST", "/api/experiments", OPS, json=told)
        forced: dict[str, Any] = {"experiment": {"name": "tone", "variant": "kind"}}
        await say(run, "one", **forced)
        assert ((await talk_of(run)).model, (await talk_of(run)).system) == ("demo", "")
        await say(run, [{"role": "system", "content": "be brief"}, user("two")], **forced)
        assert (await talk_of(run)).system == "be brief"
        await asks(run, "POST", "/api/conversations/t/generate", json={"message": "three"})
        bodies = asked(run.ollama)
    assert [body["model"] for body in bodies] == ["demo-thinking:latest"] * 2 + ["demo:latest"]
    assert [body["messages"][0]["content"] for body in bodies] == ["be kind", "be kind", "be brief"]


def test_the_same_text_with_another_image_is_a_new_message() -> None:
    one, other = (Message("user", "What is it?", images=(Image(picture),)) for picture in ("YQ==", "Yg=="))
    assert same(one, one) and not same(one, other)
