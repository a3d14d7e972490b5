"""Stored chat completions, with either database."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion

from tests.conftest import HI, Start
from tests.plugins.stored.asking import B, ask, clients, config
from tests.whole.asking import data_url, picture

MODEL = "demo"
MESSAGES: Any = HI


CHAT: Any = {"model": MODEL, "messages": HI, "store": True}


async def test_the_sdk_lists_by_metadata_and_model_in_either_order(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run, clients(run) as (client, _):
        api, blue = client.chat.completions, {"team": "blue", "a\0": '"'}
        made = [await api.create(**CHAT, metadata=told) for told in (blue, {"team": "red"}, blue, None)]
        await api.create(model=MODEL, messages=MESSAGES, metadata=blue)
        ids = [one.id for one in made]
        assert [one.id async for one in api.list(limit=2)] == ids
        assert [one.id async for one in api.list(limit=3, order="desc")] == ids[::-1]
        assert [one.id async for one in api.list(metadata=blue, limit=1)] == [ids[0], ids[2]]
        assert [one.id async for one in api.list(model=MODEL)] == ids
        for nothing in (api.list(metadata={"team": "green"}), api.list(model="x")):
            assert [one async for one in nothing] == []
        described = await api.update(ids[0], metadata={"team": "green"})
        assert described.to_dict()["metadata"] == {"team": "green"}
        assert [one.id async for one in api.list(metadata={"team": "green"})] == [ids[0]]
        assert [one.id async for one in api.list(metadata=blue)] == [ids[2]]


async def test_the_sdk_reads_what_it_was_answered_and_deletes_it(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run, clients(run) as (client, _):
        api = client.chat.completions
        made = await api.create(**CHAT, metadata={"a": "b"}, temperature=0.5, n=2)
        kept = ChatCompletion.model_validate((await api.retrieve(made.id)).to_dict()).to_dict()
        assert {name: kept[name] for name in made.to_dict()} == made.to_dict() and len(made.choices) == 2
        assert (kept["temperature"], kept["metadata"]) == (0.5, {"a": "b"})
        pieces = [one async for one in await api.create(**CHAT, stream=True, stream_options={"include_usage": True})]
        text = "".join(one.choices[0].delta.content or "" for one in pieces if one.choices)
        streamed = await api.retrieve(pieces[0].id)
        assert streamed.choices[0].message.content == text and streamed.usage == pieces[-1].usage
        unkept = await api.create(model=MODEL, messages=MESSAGES)
        assert (await api.delete(made.id)).deleted
        for id in (made.id, unkept.id):
            with pytest.raises(openai.NotFoundError):
                await api.retrieve(id)
        assert [one.id async for one in api.list()] == [pieces[0].id]


async def test_the_messages_of_a_completion_are_listed(start: Start, tmp_path: Any) -> None:
    said = [{"role": "system", "content": "be kind"}, *picture(data_url())]
    async with start(config(f"sqlite:///{tmp_path}/x.db")) as run, clients(run) as (client, _):
        api: Any = client.chat.completions
        made = await api.create(model="demo-vision", messages=said, store=True)
        found = [one.to_dict() async for one in api.messages.list(made.id, limit=1)]
    assert [one["id"] for one in found] == [f"{made.id}-0", f"{made.id}-1"]
    assert found[0]["content"] == "be kind" and found[1]["content"] is None
    assert found[1]["content_parts"] == said[1]["content"]


async def test_other_callers_completions_are_not_accessible(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run, clients(run) as (alice, bob):
        made = await alice.chat.completions.create(model=MODEL, messages=MESSAGES, store=True)
        path = f"/v1/chat/completions/{made.id}"
        for method, rest in (("GET", ""), ("POST", ""), ("DELETE", ""), ("GET", "/messages")):
            body: Any = {"metadata": {}} if method == "POST" else {}
            status, document = await ask(run, method, path + rest, B, **body)
            assert (status, document["error"]["code"]) == (404, "not_found")
        assert [one async for one in bob.chat.completions.list()] == []
        assert (await ask(run, "GET", f"/v1/chat/completions?after={made.id}", B))[0] == 404
        assert [one.id async for one in alice.chat.completions.list()] == [made.id]
        assert (await ask(run, "GET", f"/v1/responses/{made.id}"))[0] == 404


WRONG: list[tuple[str, str, Any, str]] = [
    ("GET", "?limit=101", {}, "limit"),
    ("GET", "?order=up", {}, "order"),
    ("GET", "?strange=1", {}, "strange"),
    ("POST", "/x", {}, "metadata"),
    ("POST", "/x", {"metadata": {"a": 1}}, "metadata.a"),
    ("POST", "/x", {"metadata": {"a": "b" * 513}}, "metadata.a"),
    ("POST", "/x", {"metadata": {"a" * 65: "b"}}, f"metadata.{'a' * 65}"),
    ("POST", "/x", {"metadata": {str(number): "" for number in range(17)}}, "metadata"),
    ("POST", "/x", {"metadata": {}, "model": "x"}, "model"),
]  # fmt: skip


async def test_an_invalid_field_is_named_in_the_error(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db")) as run:
        status, document = await ask(run, "GET", "/v1/chat/completions?after=chatcmpl-none")
        assert (status, document["error"]["param"], document["error"]["code"]) == (404, "after", "not_found")
        for method, rest, body, param in WRONG:
            status, document = await ask(run, method, f"/v1/chat/completions{rest}", **body)
            assert (status, document["error"]["param"]) == (400, param), rest
