"""LangChain's `ChatOpenAI` with the Responses API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from proxy.upstreams.demo import Fault, Said
from tests.conftest import Running, Start
from tests.plugins.stored.asking import config
from tests.whole.asking import asked
from tests.whole.test_langchain import get_weather


class City(BaseModel):
    """A city."""

    name: str
    people: int


@pytest_asyncio.fixture
async def run(start: Start, tmp_path: Any) -> AsyncIterator[Running]:
    async with start(config(f"sqlite:///{tmp_path}/x.db")) as running:
        yield running


@pytest_asyncio.fixture
async def to(run: Running) -> AsyncIterator[dict[str, Any]]:
    async with openai.DefaultAsyncHttpxClient() as http:
        yield {
            "base_url": f"{run.url}/v1", "api_key": SecretStr("a-key"), "max_retries": 0, "http_async_client": http,
            "model": "demo", "use_responses_api": True,
        }  # fmt: skip


async def test_it_invokes_streams_and_continues(run: Running, to: dict[str, Any]) -> None:
    model = ChatOpenAI(**to, use_previous_response_id=True)
    first = await model.ainvoke("hi")
    assert 'You said: "hi"' in first.text and first.response_metadata["id"].startswith("resp_")
    assert first.usage_metadata and first.usage_metadata["total_tokens"] > 0
    pieces = [piece async for piece in model.astream([HumanMessage("hi"), first, HumanMessage("and?")])]
    assert len(pieces) > 3 and 'You said: "and?"' in "".join(piece.text for piece in pieces)
    turns = [[(one["role"], one["content"]) for one in body["messages"]] for body in asked(run.ollama)]
    assert turns[1] == [("user", "hi"), ("assistant", first.text), ("user", "and?")]


async def test_it_calls_tools_and_parses(run: Running, to: dict[str, Any]) -> None:
    model = ChatOpenAI(**to)
    said: list[Any] = [HumanMessage("Call get_weather.")]
    called = await model.bind_tools([get_weather], tool_choice="required").ainvoke(said)
    assert isinstance(called, AIMessage)
    (call,) = called.tool_calls
    said += [called, ToolMessage("4 degrees", tool_call_id=call["id"])]
    assert "4 degrees" in (await model.bind_tools([get_weather]).ainvoke(said)).text
    for strict in (True, False):
        parsed = await model.with_structured_output(City, strict=strict).ainvoke("A city?")
        assert isinstance(parsed, City)


@pytest.mark.parametrize("version", ["responses/v1", "v1"])
async def test_tools_come_by_stream_and_are_answered_in_either_form_of_messages(
    to: dict[str, Any], version: Any
) -> None:
    model = ChatOpenAI(**to, output_version=version)
    said: list[Any] = [HumanMessage("Call get_weather.")]
    full: Any = None
    async for piece in model.bind_tools([get_weather], tool_choice="required").astream(said):
        full = piece if full is None else full + piece
    (call,) = full.tool_calls
    said += [full, ToolMessage("4 degrees", tool_call_id=call["id"])]
    answer = await model.bind_tools([get_weather]).ainvoke(said)
    assert "4 degrees" in answer.text
    again = await model.ainvoke([*said, answer, HumanMessage("And?")])
    assert 'You said: "And?"' in again.text
    parsed = [piece async for piece in model.with_structured_output(City).astream("A city?")]
    assert isinstance(parsed[-1], City)


async def test_it_reads_a_models_reasoning(run: Running, to: dict[str, Any]) -> None:
    run.ollama.say = lambda _: Said("Good day.", thinking="A greeting.")
    model = ChatOpenAI(**{**to, "model": "demo-thinking"}, reasoning={"effort": "low", "summary": "auto"})
    whole = await model.ainvoke("hi")
    full: Any = None
    async for piece in model.astream("hi"):
        full = piece if full is None else full + piece
    for message in (whole, full):
        assert message.text == "Good day."
        blocks: list[Any] = message.content_blocks
        assert [one["reasoning"] for one in blocks if one["type"] == "reasoning"] == ["A greeting."]


async def test_it_raises_for_a_stream_that_broke_off(run: Running, to: dict[str, Any]) -> None:
    run.ollama.faults.append(Fault("eof", after=3))
    with pytest.raises(ValueError, match="upstream"):
        async for _ in ChatOpenAI(**to).astream("hi"):
            pass
