"""`/v1/responses` in a conversation: its items have the IDs that the response gave them."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from proxy.upstreams.demo import Fault, Said, Simulator
from tests.conftest import Running, Start
from tests.plugins.conversations.asking import asks, config, kept, say, talk_of, texts

CALLED = Said("well", thinking="hm", tool_calls=(("look", {"at": 1}),))
OPEN = ("queued", "in_progress")
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}


def alice(run: Running) -> openai.AsyncOpenAI:
    return run.client(api_key="a-key")


def model(said: Said = CALLED, **more: Any) -> Simulator:
    return Simulator(say=lambda _: said, **more)


async def answered(client: openai.AsyncOpenAI, stream: bool, **body: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"model": "demo-thinking", "input": "hi", "conversation": "t", **body}
    if not stream:
        whole: dict[str, Any] = (await client.responses.create(**given)).model_dump()
        return whole
    last = [event async for event in await client.responses.create(**given, stream=True)][-1]
    told: dict[str, Any] = last.response.model_dump()
    return told


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("chain", ["conversations", "stored, conversations"])
async def test_an_item_has_one_id_in_its_response_and_in_its_conversation(
    start: Start, database_url: str, stream: bool, chain: str
) -> None:
    async with start(config(database_url, chain), model()) as run, alice(run) as client:
        told = await answered(client, stream, tools=[TOOL], reasoning={"summary": "auto"})
        output = told["output"]
        assert [one["type"] for one in output] == ["reasoning", "message", "function_call"]
        listed = [one async for one in client.conversations.items.list("t", order="asc")]
        assert [one.id for one in listed][1:] == [one["id"] for one in output]
        assert [one.type for one in listed][1:] == [one["type"] for one in output]
        for one in listed:
            assert await client.conversations.items.retrieve(one.id or "", conversation_id="t") == one
        after = await client.conversations.items.list("t", order="asc", after=output[0]["id"])
        assert [one.id for one in after.data] == [one["id"] for one in output[1:]]
        said = (await kept(run))[1].message
        assert (said.text, said.thinking, len(said.tool_calls)) == ("well", "hm", 1)


async def test_an_item_of_a_response_can_be_referred_to_and_deleted_by_its_id(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db"), model(Said("well"))) as run, alice(run) as client:
        (item,) = (await answered(client, False))["output"]
        refers: Any = [{"type": "item_reference", "id": item["id"]}]
        copy = await client.conversations.create(items=refers)
        assert texts(await kept(run, copy.id)) == ["well"]
        await client.conversations.items.delete(item["id"], conversation_id="t")
        assert texts(await kept(run)) == ["hi"]


async def test_a_forks_items_have_their_own_ids(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db"), model()) as run, alice(run) as client:
        output = (await answered(client, False))["output"]
        fork = (await asks(run, "POST", "/api/conversations/t/fork", status=201, json={}))["id"]
        listed = [one async for one in client.conversations.items.list(fork, order="asc")]
        assert [one.type for one in listed] == ["message", *(one["type"] for one in output)]
        assert not {one.id for one in listed} & {one["id"] for one in output}
        for one in listed:
            assert await client.conversations.items.retrieve(one.id or "", conversation_id=fork) == one


async def test_a_cut_off_answer_is_stored_as_in_its_response(start: Start, tmp_path: Any) -> None:
    ollama = Simulator(faults=[Fault("eof", after=3)])
    async with start(config(f"sqlite:///{tmp_path}/x.db"), ollama) as run, alice(run) as client:
        told = await answered(client, True, model="demo")
        (item,) = told["output"]
        await say(run, "on")  # its turn begins when the other answer is stored
        listed = [one async for one in client.conversations.items.list("t", order="asc")]
    assert (told["status"], listed[1].id, listed[1].model_dump()["status"]) == ("failed", item["id"], "incomplete")


async def test_a_response_in_the_background_has_the_same_items(start: Start, tmp_path: Any) -> None:
    text = config(f"sqlite:///{tmp_path}/x.db", "stored, conversations")
    async with start(text, model()) as run, alice(run) as client:
        told = await answered(client, False, background=True, tools=[TOOL])
        while (response := await client.responses.retrieve(told["id"])).status in OPEN:  # noqa: ASYNC110  (there is no event)
            await asyncio.sleep(0.01)
        listed = [one async for one in client.conversations.items.list("t", order="asc")]
        assert [one.id for one in listed][1:] == [one.id for one in response.output]
        assert (await talk_of(run)).messages == 2
