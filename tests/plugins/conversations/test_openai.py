"""OpenAI's Conversations API, through its own SDK."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types.conversations import ConversationItem
from pydantic import TypeAdapter

from plugins.conversations.items import grouped
from proxy.edge.images import Images
from proxy.types import Image
from tests.conftest import Running, Start
from tests.plugins.conversations.asking import A, B, asks, config, echo, kept, say, texts
from tests.whole.asking import asked, data_url

PATH = "/v1/conversations"
LISTED: TypeAdapter[Any] = TypeAdapter(ConversationItem)


def user(text: str) -> Any:
    return {"type": "message", "role": "user", "content": text}


def alice(run: Running) -> openai.AsyncOpenAI:
    return run.client(api_key="a-key")


async def test_a_conversation_is_created_changed_and_deleted(start: Start, database_url: str) -> None:
    async with start(config(database_url), echo()) as run, alice(run) as client:
        talk = await client.conversations.create(items=[user("hello")], metadata={"topic": "demo"})
        assert talk.object == "conversation" and talk.id.startswith("conv_") and talk.metadata == {"topic": "demo"}
        changed = await client.conversations.update(talk.id, metadata={"topic": "new"})
        assert (await client.conversations.retrieve(talk.id)).metadata == changed.metadata == {"topic": "new"}
        answer = await client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "more"}], extra_body={"conversation": talk.id}
        )
        assert answer.choices[0].message.content == "heard more"
        assert [one["content"] for one in asked(run.ollama)[-1]["messages"]] == ["hello", "more"]
        assert (await client.conversations.delete(talk.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.conversations.retrieve(talk.id)


async def test_items_are_added_listed_read_and_deleted(start: Start, database_url: str) -> None:
    async with start(config(database_url), echo()) as run, alice(run) as client:
        await say(run, "one")
        items: list[Any] = [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "look"}]},
            {"type": "reasoning", "id": "rs_x", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "it"},
        ]
        added = await client.conversations.items.create("t", items=items)
        assert [one.type for one in added.data] == ["message", "reasoning", "function_call", "function_call_output"]
        assert [len(one.message.tool_calls) for one in await kept(run)] == [0, 0, 0, 1, 0]
        listed = [one async for one in client.conversations.items.list("t", limit=2, order="asc")]
        assert [one.id for one in listed][2:] == [one.id for one in added.data] and len(listed) == 6
        assert [one.id async for one in client.conversations.items.list("t", limit=4)] == [
            one.id for one in reversed(listed)
        ]
        for one in listed:
            LISTED.validate_python(one.model_dump(), strict=False)
            assert await client.conversations.items.retrieve(one.id or "", conversation_id="t") == one
        await client.conversations.items.delete(added.data[1].id or "", conversation_id="t")
        await client.conversations.items.delete(added.data[3].id or "", conversation_id="t")
        assert [one.type async for one in client.conversations.items.list("t", order="asc")] == [
            "message", "message", "message", "function_call",
        ]  # fmt: skip
        with pytest.raises(openai.NotFoundError):
            await client.conversations.items.retrieve(added.data[1].id or "", conversation_id="t")
        after = await asks(run, "GET", f"{PATH}/t/items?order=asc&after={added.data[1].id}")
        assert [one["type"] for one in after["data"]] == ["function_call"]
        found = await kept(run)
        assert texts(found) == ["one", "heard one", "look", ""] and found[3].message.thinking == ""
        assert (await asks(run, "GET", "/api/conversations/t"))["message_count"] == 4


async def test_image_urls_are_included_on_request(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db"), echo()) as run, alice(run) as client:
        picture: Any = {"type": "input_image", "image_url": data_url(), "detail": "auto"}
        call: Any = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}
        given: Any = {"type": "function_call_output", "call_id": "c1", "output": [picture]}
        items: Any = [{"type": "message", "role": "user", "content": [picture]}, call, given]
        talk = await client.conversations.create(items=items)
        bare = [one.model_dump() async for one in client.conversations.items.list(talk.id)]
        asked = client.conversations.items.list(talk.id, include=["message.input_image.image_url"])
        whole = [one.model_dump() async for one in asked]
    for listed, url in ((bare, None), (whole, data_url())):
        assert listed[-1]["content"][0]["image_url"] == url and listed[0]["output"][0]["image_url"] == url


async def test_linked_images_are_fetched_if_the_operator_allows_it(
    start: Start, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def all_of(_: Images, wanted: dict[str, str]) -> list[Image]:
        return [Image(data_url().partition(",")[2]) for _ in wanted]

    monkeypatch.setattr(Images, "all", all_of)  # no request leaves this machine
    text = config(f"sqlite:///{tmp_path}/x.db", more="requests: {image_hosts: [good.example]}\n")
    async with start(text, echo()) as run, alice(run) as client:
        for number, (host, status) in enumerate({"good.example": 200, "bad.example": 400}.items()):
            link = f"https://{host}/a.png"
            items = [{"role": "user", "content": [{"type": "input_image", "image_url": link}]}]
            told = await asks(run, "POST", PATH, status=status, json={"items": items})
            message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": link}}]}
            own, made = "/api/conversations", {200: 201}.get(status, status)
            bad = [
                await asks(run, "POST", own, status=made, json={"id": f"c{number}", "messages": [message]}),
                await asks(run, "POST", f"{own}/c0/messages", status=made, json=message),
                await asks(
                    run, "POST", f"{own}/c0/generate", status=status, json={"model": "demo-vision", "message": message}
                ),
            ]
            if status == 200:
                listed = client.conversations.items.list(told["id"], include=["message.input_image.image_url"])
                (item,) = (await listed).data
                assert item.model_dump()["content"][0]["image_url"] == data_url()
        assert told["error"]["param"] == "items[0].content" and told["error"]["code"] == "image_url_not_allowed"
        assert [one["error"]["param"] for one in bad] == ["messages[0].content", "content", "message.content"]
        assert [len(one.message.images) for one in await kept(run, "c0")] == [1, 1, 1, 0]


async def test_items_can_refer_to_items_of_the_callers_own_conversations(start: Start, database_url: str) -> None:
    async with start(config(database_url), echo()) as run, alice(run) as client:
        await say(run, "one")
        said, asked_ = (await client.conversations.items.list("t")).data
        refers: Any = [{"type": "item_reference", "id": asked_.id}, {"id": said.id}, user("two")]
        talk = await client.conversations.create(items=refers)
        assert texts(await kept(run, talk.id)) == ["one", "heard one", "two"]
        items = {"items": [user("x"), {"type": "item_reference", "id": said.id}]}
        for who, given in (
            (B, items),
            (A, {"items": [user("x"), {"id": "msg_" + "0" * 36}]}),
            (A, {"items": [{"id": 1}]}),
        ):
            told = await asks(run, "POST", PATH, who, 404, json=given)
            assert told["error"]["code"] == "item_not_found"
            assert told["error"]["param"] == f"items[{len(given['items']) - 1}].id"


async def test_logprobs_are_included_on_request(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db"), echo()) as run, alice(run) as client:
        await say(run, "hi", logprobs=True)
        bare = (await client.conversations.items.list("t")).data[0].model_dump()["content"][0]
        whole = (await client.conversations.items.list("t", include=["message.output_text.logprobs"])).data[0]
        LISTED.validate_python(whole.model_dump())
        part = whole.model_dump()["content"][0]
        assert (
            bare["logprobs"] == [] and "".join(one["token"] for one in part["logprobs"]) == part["text"] == "heard hi"
        )


async def test_an_empty_item_is_stored_and_not_sent_to_the_model(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db"), echo()) as run, alice(run) as client:
        thought: Any = {"type": "reasoning", "summary": [], "content": []}
        words: Any = {"type": "message", "role": "assistant", "content": "well"}
        talk = (await client.conversations.create(items=[user("one"), thought, words])).id
        said = (await client.conversations.items.list(talk)).data[0]
        await client.conversations.items.delete(said.id or "", conversation_id=talk)
        await client.conversations.items.create(talk, items=[user("two"), thought])
        assert [one.type async for one in client.conversations.items.list(talk)] == ["reasoning", "message"] * 2
        await say(run, "three", talk)
        assert [one["content"] for one in asked(run.ollama)[-1]["messages"]] == ["one", "two", "three"]


def test_items_of_one_turn_are_grouped_into_one_message() -> None:
    kinds = {"u": {"type": "message", "role": "user"}, "a": {"type": "message", "role": "assistant"}}
    kinds |= {"r": {"type": "reasoning"}, "c": {"type": "function_call"}, "o": {"type": "function_call_output"}}
    kinds |= {"f": {"type": "file_search_call"}}
    for written in ("u|u", "u|rac|o|a", "a|a", "rcc|o|o", "ac|ra", "rra", "cc|a", "u|fra|u", "f|u|a|fa"):
        groups = grouped([kinds[one] for one in written.replace("|", "")])
        names = {id(kind): name for name, kind in kinds.items()}
        assert "|".join("".join(names[id(one)] for one in group) for group in groups) == written


BAD: list[tuple[str, str, Any, str]] = [
    ("POST", "", {"items": [user("x")] * 21}, "items"),
    ("POST", "", {"metadata": {"a": 1}}, "metadata.a"),
    ("POST", "/t", {}, "metadata"),
    ("POST", "/t/items", {"items": []}, "items"),
    ("POST", "/t/items", {"items": [{"type": "message", "role": "user"}]}, "items[0].content"),
    ("POST", "/t/items", {"items": [{"type": "web_search_call"}]}, "items[0].type"),
    ("GET", "/t/items?limit=101", None, "limit"),
    ("GET", "/t/items?include=everything", None, "include[0]"),
]


async def test_invalid_requests_name_the_field(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db"), echo()) as run:
        await say(run, "hi")
        for method, path, body, param in BAD:
            told = await asks(run, method, PATH + path, status=400, **({} if body is None else {"json": body}))
            assert told["error"]["param"] == param, (method, path, body)


async def test_no_route_shows_or_changes_another_callers_conversation(start: Start, database_url: str) -> None:
    async with start(config(database_url), echo()) as run:
        await say(run, "secret"), await say(run, "own", "mine", B)
        item = (await asks(run, "GET", f"{PATH}/t/items"))["data"][0]["id"]
        for method, path, body in (
            ("GET", "/t", None),
            ("POST", "/t", {"metadata": {}}),
            ("DELETE", "/t", None),
            ("POST", "/t/items", {"items": [user("x")]}),
            ("GET", "/t/items", None),
            ("GET", f"/t/items/{item}", None),
            ("DELETE", f"/t/items/{item}", None),
            ("GET", f"/mine/items/{item}", None),
            ("DELETE", f"/mine/items/{item}", None),
            ("GET", f"/mine/items?after={item}", None),
        ):
            await asks(run, method, PATH + path, B, 404, **({} if body is None else {"json": body}))
        assert texts(await kept(run)) == ["secret", "heard secret"]
        await asks(run, "GET", f"{PATH}/t/items/{item}", A)
