"""LangChain's OpenAI classes against a running server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Literal

import openai
import pytest
import pytest_asyncio
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr

from tests.conftest import Running, Start
from tests.whole.asking import Json, asked, data_url


class City(BaseModel):
    """A city."""

    name: str
    people: int
    rivers: list[str]


@tool
def get_weather(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius") -> str:
    """The weather in a city."""
    return f"4 degrees {unit} in {city}"


@pytest_asyncio.fixture
async def run(start: Start) -> AsyncIterator[Running]:
    async with start() as running:
        yield running


@pytest_asyncio.fixture
async def to(run: Running) -> AsyncIterator[dict[str, Any]]:
    """Arguments that connect LangChain's classes to the server; by default they never close their connections."""
    async with openai.DefaultAsyncHttpxClient() as http:
        yield {
            "base_url": f"{run.url}/v1",
            "api_key": SecretStr("none"),
            "max_retries": 0,
            "http_async_client": http,
            "model": "demo",
        }


async def test_the_blocking_classes_work_in_a_thread(run: Running) -> None:
    def ask() -> str:
        with openai.DefaultHttpxClient() as http:
            model = ChatOpenAI(
                base_url=f"{run.url}/v1", api_key=SecretStr("none"), model="demo", max_retries=0, http_client=http
            )
            return model.invoke("hi").text + "".join(piece.text for piece in model.stream("hi"))

    answer = await asyncio.to_thread(ask)
    assert answer.count("simulated") == 2


async def test_invoke_gives_text_and_usage(run: Running, to: Json) -> None:
    answer = await ChatOpenAI(**to, temperature=0.2, max_completion_tokens=400).ainvoke(
        [SystemMessage("be brief"), HumanMessage("hi")]
    )
    assert "simulated" in answer.text
    assert answer.usage_metadata is not None and answer.usage_metadata["output_tokens"] > 0
    assert answer.response_metadata["finish_reason"] == "stop"
    assert asked(run.ollama)[0]["options"] == {"temperature": 0.2, "num_predict": 400}


async def test_a_stream_adds_up_to_the_whole_answer(to: Json) -> None:
    whole = await ChatOpenAI(**to).ainvoke("hi")
    pieces = [piece async for piece in ChatOpenAI(**to).astream("hi", stream_usage=True)]
    joined = pieces[0]
    for piece in pieces[1:]:
        joined += piece
    assert joined.text == whole.text and len(pieces) > 3
    assert joined.usage_metadata is not None and whole.usage_metadata is not None
    assert joined.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]


async def test_a_batch_is_answered_in_order(to: Json) -> None:
    answers = await ChatOpenAI(**to).abatch([f"number {index}." for index in range(6)])
    assert all(f"number {index}." in one.text for index, one in enumerate(answers))


async def test_bound_tools_are_called_and_their_results_understood(to: Json) -> None:
    model = ChatOpenAI(**to).bind_tools([get_weather])
    question = HumanMessage("What does get_weather say of Ulm?")
    called = await model.ainvoke([question])
    assert isinstance(called, AIMessage) and [call["name"] for call in called.tool_calls] == ["get_weather"]
    result = await get_weather.ainvoke(called.tool_calls[0])
    assert isinstance(result, ToolMessage)
    answer = await model.ainvoke([question, called, result])
    assert "4 degrees celsius" in answer.text


@pytest.mark.parametrize("model", ["demo", "demo-rendered"])
@pytest.mark.parametrize("choice", ["get_weather", "any", "required"])
async def test_a_forced_tool_is_called(to: Json, model: str, choice: str) -> None:
    called = (
        await ChatOpenAI(**to | {"model": model})
        .bind_tools([get_weather], tool_choice=choice)
        .ainvoke("say nothing of it")
    )
    assert isinstance(called, AIMessage) and [call["name"] for call in called.tool_calls] == ["get_weather"]
    assert called.tool_calls[0]["args"]["unit"] == "celsius"


async def test_a_streamed_tool_call_adds_up(to: Json) -> None:
    joined: Any = None
    async for piece in ChatOpenAI(**to).bind_tools([get_weather]).astream("get_weather in Ulm"):
        joined = piece if joined is None else joined + piece
    assert isinstance(joined, AIMessage) and [call["name"] for call in joined.tool_calls] == ["get_weather"]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("strict", [None, True])
@pytest.mark.parametrize("model", ["demo", "demo-rendered", "demo-thinking"])
async def test_structured_output_is_an_instance(to: Json, method: Any, strict: bool | None, model: str) -> None:
    found = (
        await ChatOpenAI(**to | {"model": model})
        .with_structured_output(City, method=method, strict=strict)
        .ainvoke("Ulm?")
    )
    assert isinstance(found, City) and found.rivers


async def test_structured_output_by_json_mode_is_a_mapping(to: Json) -> None:
    found = await ChatOpenAI(**to).with_structured_output(None, method="json_mode").ainvoke("Answer in JSON: Ulm?")
    assert isinstance(found, dict) and found["simulated"] is True


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")  # LangChain's own
async def test_structured_output_streams(to: Json) -> None:
    model = ChatOpenAI(**to).with_structured_output(City, method="json_schema")
    assert isinstance([piece async for piece in model.astream("Ulm?")][-1], City)


async def test_a_message_with_an_image_is_seen(to: Json) -> None:
    parts: list[str | dict[Any, Any]] = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": data_url(), "detail": "low"}},
    ]
    answer = await ChatOpenAI(**to | {"model": "demo-vision"}).ainvoke([HumanMessage(content=parts)])
    assert "1 image" in answer.text


@pytest.mark.parametrize("responses", [False, True])
async def test_an_image_returned_by_a_tool_is_seen(run: Running, to: Json, responses: bool) -> None:
    given: Any = [{"type": "text", "text": "here"}, {"type": "image", "url": data_url()}]
    call: Any = {"name": "look", "args": {}, "id": "call_1", "type": "tool_call"}
    turns = [HumanMessage("look"), AIMessage("", tool_calls=[call]), ToolMessage(given, tool_call_id="call_1")]
    answer = await ChatOpenAI(**{**to, "model": "demo-vision"}, use_responses_api=responses).ainvoke(turns)
    assert "here" in answer.text
    assert [len(one.get("images", ())) for one in asked(run.ollama)[0]["messages"]] == [0, 0, 1]


async def test_texts_are_embedded(to: Json) -> None:
    embeddings = OpenAIEmbeddings(**to | {"model": "demo-embed"}, check_embedding_ctx_length=False)
    documents = await embeddings.aembed_documents(["one", "two"])
    query = await embeddings.aembed_query("two")
    assert len(documents) == 2 and query == pytest.approx(documents[1])


@pytest.mark.parametrize("responses", [False, True])
async def test_an_overlong_prompt_raises_langchains_context_overflow_error(to: Json, responses: bool) -> None:
    with pytest.raises(ContextOverflowError):
        await ChatOpenAI(**to, use_responses_api=responses).ainvoke("many words " * 3000)


async def test_the_responses_api_streams_text_usage_and_calls(to: Json) -> None:
    model = ChatOpenAI(**to, use_responses_api=True)
    parts = [part async for part in model.astream("hi")]
    whole = parts[0]
    for part in parts[1:]:
        whole += part
    assert "simulated" in whole.text and whole.usage_metadata and whole.usage_metadata["output_tokens"] > 0
    called = await model.bind_tools([get_weather]).ainvoke("get_weather in Rome")
    assert [one["name"] for one in called.tool_calls] == ["get_weather"]
    city = await model.with_structured_output(City).ainvoke("Rome")
    assert isinstance(city, City)


@pytest.mark.parametrize("responses", [False, True])
async def test_an_agent_that_must_call_a_tool_in_each_turn_ends_with_the_answer_tool(to: Json, responses: bool) -> None:
    """LangChain's agents with a `response_format` force a tool call in each turn; the last one gives the answer."""
    model = ChatOpenAI(**to, use_responses_api=responses).bind_tools([get_weather, City], tool_choice="any")
    said: list[Any] = [HumanMessage("The weather in Rome?")]
    for _ in range(2):
        answer = await model.ainvoke(said)
        said += [answer, *(ToolMessage("4 degrees", tool_call_id=one["id"]) for one in answer.tool_calls)]
    assert [one["name"] for one in said[1].tool_calls] == ["get_weather"]
    assert [one["name"] for one in answer.tool_calls] == ["City"]
