"""An OpenAI-compatible upstream: a proxy in front of a proxy, and servers with the quirks of other software."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import ollama
import openai
import pytest
from aiohttp import web

from proxy import config as configuration
from proxy import registry
from proxy.config import Config, Upstream
from proxy.errors import ConfigError, UpstreamError
from proxy.port import Port
from proxy.server import serving
from proxy.upstreams.demo import Fault, Said, Simulator, running
from proxy.upstreams.openai import OpenAI
from proxy.yamlfile import Source
from tests.conftest import ASK, BARE, HI, Running, Start, completed
from tests.whole.asking import (
    asked,
    data_url,
    dead_url,
    error_of,
    function,
    picture,
    said,
    schema,
    streamed,
    user,
    whole,
)

SECRET = "sk-far-secret"
KEYED = f"{BARE}\nkeys: {{near: {SECRET}}}"
LONG = Said("many words " * 100)
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@asynccontextmanager
async def far(simulator: Simulator, text: str = BARE) -> AsyncIterator[str]:
    """The base URL of a proxy in front of the simulator."""
    async with running(simulator) as upstream:

        def read() -> tuple[Config, Source]:
            return configuration.read("far.yaml", completed(text, upstream), registry.problems_of, {})

        async with serving(read) as server:
            yield f"{server.url}/v1"


def near(url: str, more: str = "", key: str = SECRET) -> str:
    return f"{BARE}\nupstreams: {{far: {{openai: '{url}', key: '{key}'{more}}}}}\n"


@asynccontextmanager
async def both(start: Start, simulator: Simulator | None = None, more: str = "") -> AsyncIterator[Running]:
    """A proxy in front of a proxy in front of the simulator; its Running has that simulator as `ollama`."""
    simulator = simulator or Simulator()
    async with far(simulator, KEYED) as url, start(near(url) + more, simulator) as run:
        yield run


# --- a proxy in front of a proxy -----------------------------------------------------------------------


@pytest.mark.parametrize("model", ["demo", "demo:latest", "DEMO"])
async def test_a_chat_is_the_same_whole_and_streamed(start: Start, model: str) -> None:
    async with both(start) as run, run.client() as client:
        answer = await client.chat.completions.create(**{**ASK, "model": model}, max_tokens=500)
        asked_again: Any = {"model": model, "messages": HI, "stream_options": {"include_usage": True}}
        stream = await client.chat.completions.create(**asked_again, stream=True)
        chunks = [chunk async for chunk in stream]
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert text == answer.choices[0].message.content and "simulated" in text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage and chunks[-1].usage and answer.usage.total_tokens == chunks[-1].usage.total_tokens > 10
    assert [one.get("options") for one in asked(run.ollama)] == [{"num_predict": 500}, None]


async def test_the_answers_headers_are_like_those_of_an_ollama_upstream(start: Start) -> None:
    async with both(start) as run:
        response = await run.chat(options={"top_k": 3, "temperature": 0})
        await whole(response)
    assert response.headers["x-gemmapy-upstream"] == "far" and response.headers["x-gemmapy-model"] == "demo:latest"
    assert response.headers["x-gemmapy-params"] == "options.top_k=ignored"
    assert asked(run.ollama)[0]["options"] == {"temperature": 0}


async def test_options_that_the_operator_listed_are_sent(start: Start) -> None:
    simulator = Simulator()
    async with far(simulator) as url, start(near(url, ", options: [top_k]"), simulator) as run:
        response = await run.chat(options={"top_k": 3})
    assert "x-gemmapy-params" not in response.headers  # the far proxy ignores it: OpenAI's dialect has no such option


async def test_a_strict_server_refuses_unsupported_fields(start: Start) -> None:
    async with both(start, more="params: strict\n") as run:
        error = await error_of(await run.chat(options={"top_k": 3}), 400)
        assert (error["param"], error["code"]) == ("options.top_k", "unsupported_parameter")
        assert asked(run.ollama) == []


@pytest.mark.parametrize("model", ["demo", "demo-rendered"])
@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "get_time"}}])
async def test_tools_are_called(start: Start, model: str, choice: Any) -> None:
    tools = [function("get_weather"), function("get_time")]
    body = {"model": model, "messages": user("Please get_time in Bonn."), "tools": tools, "tool_choice": choice}
    async with both(start) as run, run.client() as client:
        answer = await client.chat.completions.create(**body)
        message = answer.choices[0].message
        async with client.chat.completions.stream(**body) as stream:
            final = (await stream.get_final_completion()).choices[0]
    assert message.tool_calls and final.message.tool_calls
    assert answer.choices[0].finish_reason == final.finish_reason == "tool_calls"
    names = [[call.function.name for call in calls] for calls in (message.tool_calls, final.message.tool_calls)]
    assert names[0] == names[1]
    assert json.loads(message.tool_calls[0].function.arguments).keys() == {"city"}
    if isinstance(choice, dict):
        assert names[0] == ["get_time"]


async def test_a_conversation_with_tool_results_reaches_the_far_model(start: Start) -> None:
    calls = [{"id": "call_9", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Bonn"}'}}]
    turns = [
        *user("Rain?"),
        {"role": "assistant", "content": None, "tool_calls": calls, "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "call_9", "content": "none"},
    ]
    async with both(start) as run:
        response = await run.chat(messages=turns, tools=[function("get_weather")])
        await whole(response)
    assert response.headers["x-gemmapy-params"] == "messages.thinking=ignored"
    [body] = asked(run.ollama)
    assert [one["role"] for one in body["messages"]] == ["user", "assistant", "tool"]
    assert body["messages"][2]["tool_name"] == "get_weather"


@pytest.mark.parametrize("parallel", [True, False])
async def test_parallel_tool_calls_can_be_forbidden(start: Start, parallel: bool) -> None:
    simulator = Simulator(say=lambda _: Said(tool_calls=(("f", {"city": "A"}), ("f", {"city": "B"}))))
    async with both(start, simulator) as run:
        answer = await whole(await run.chat(tools=[function("f")], parallel_tool_calls=parallel))
    assert len(said(answer)["tool_calls"]) == (2 if parallel else 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_is_separate_from_the_answer(start: Start, stream: bool) -> None:
    async with both(start) as run:
        response = await run.chat(model="demo-thinking", reasoning_effort="low", stream=stream)
        if stream:
            answer = await streamed(response)
            assert any(one.get("reasoning_content") for one in answer.deltas()) and answer.text()
        else:
            message = said(await whole(response))
            assert message["reasoning_content"] and message["content"]
    assert asked(run.ollama)[0]["think"] == "low"


async def test_thinking_can_be_turned_off(start: Start) -> None:
    async with both(start) as run:
        assert "reasoning_content" not in said(
            await whole(await run.chat(model="demo-thinking", reasoning_effort="none"))
        )
    assert asked(run.ollama)[0]["think"] is False


async def test_logprobs_of_a_chat(start: Start) -> None:
    async with both(start) as run, run.client() as client:
        answer = await client.chat.completions.create(**ASK, logprobs=True, top_logprobs=2)
        bare = await client.chat.completions.create(**ASK, logprobs=True)
    found = answer.choices[0].logprobs
    assert found and found.content and len(found.content[0].top_logprobs) == 2
    assert "".join(one.token for one in found.content) == answer.choices[0].message.content
    assert bare.choices[0].logprobs and bare.choices[0].logprobs.content
    assert bare.choices[0].logprobs.content[0].top_logprobs == []


@pytest.mark.parametrize("stream", [False, True])
async def test_json_fits_its_schema(start: Start, stream: bool) -> None:
    async with both(start) as run:
        response = await run.chat(response_format=schema({"city": {"type": "string"}}), stream=stream)
        text = (await streamed(response)).text() if stream else said(await whole(response))["content"]
    assert json.loads(text).keys() == {"city"}


async def test_embeddings(start: Start) -> None:
    simulator = Simulator()
    async with far(simulator) as url, start(near(url, ", embed_batch: 2"), simulator) as run, run.client() as client:
        made = await client.embeddings.create(model="demo-embed", input=["a", "b", "c"], dimensions=8)
        alone = await client.embeddings.create(model="demo-embed", input="c", dimensions=8)
    assert [one.index for one in made.data] == [0, 1, 2] and made.usage.prompt_tokens > 0
    assert sum(number * number for number in made.data[1].embedding) == pytest.approx(1)
    assert made.data[2].embedding == pytest.approx(alone.data[0].embedding, abs=1e-6)
    assert len([one for one in run.ollama.seen if one.path == "/api/embed" and one.body["input"]]) == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_completions(start: Start, stream: bool) -> None:
    async with both(start) as run, run.client() as client:
        made = await client.completions.create(model="demo", prompt=["a", "b"], n=2, logprobs=1, seed=3)
        assert [one.index for one in made.choices] == [0, 1, 2, 3]
        assert made.choices[0].logprobs and made.choices[0].logprobs.tokens
        if stream:
            chunks = [one async for one in await client.completions.create(model="demo", prompt="a", stream=True)]
            assert "".join(one.choices[0].text for one in chunks) and chunks[-1].choices[0].finish_reason
    bodies = [one.body for one in run.ollama.seen if one.path == "/api/generate" and one.body.get("prompt")]
    assert all(body["raw"] for body in bodies)
    assert sorted(body["options"]["seed"] for body in bodies[:4]) == [3, 3, 4, 4]


async def test_several_choices_are_several_calls(start: Start) -> None:
    async with both(start) as run:
        answer = await whole(await run.chat(n=3, seed=5))
    assert len(answer["choices"]) == 3
    assert sorted(one["options"]["seed"] for one in asked(run.ollama)) == [5, 6, 7]


async def test_images_reach_the_far_model(start: Start) -> None:
    async with both(start) as run:
        await whole(await run.chat(model="demo-vision", messages=picture(data_url())))
        assert asked(run.ollama)[0]["messages"][0]["images"] == [data_url().partition(",")[2]]
        error = await error_of(await run.chat(messages=picture(data_url())), 400)
        assert error["code"] == "model_not_capable" and error["param"].startswith("messages")


# --- what goes wrong -----------------------------------------------------------------------------------


async def test_an_unknown_model_is_not_found_without_a_call(start: Start) -> None:
    async with both(start) as run, run.client() as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(**{**ASK, "model": "nothing"})
    assert caught.value.code == "model_not_found" and asked(run.ollama) == []


@pytest.mark.parametrize("stream", [False, True])
async def test_an_overflow_keeps_its_code_and_field(start: Start, stream: bool) -> None:
    async with both(start, Simulator(faults=[Fault("nested")])) as run:
        error = await error_of(await run.chat(stream=stream), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


async def test_an_invalid_upstream_key_is_an_error_that_does_not_reveal_it(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with far(Simulator(), KEYED) as url, start(near(url, key="sk-other-secret")) as run:
        for response in (await run.chat(), await run.http.get(f"{run.url}/v1/models")):
            error = await error_of(response, 502)  # not 401: the key is not the caller's
            assert error["code"] == "upstream_denied" and "sk-other" not in error["message"]
        ready = await (await run.http.get(f"{run.url}/readyz")).text()
    assert "sk-other" not in caplog.text + ready


async def test_an_unreachable_server_is_a_bad_gateway(start: Start) -> None:
    async with start(near(dead_url() + "/v1")) as run:
        assert (await error_of(await run.chat(), 502))["code"] == "upstream_connect"


@pytest.mark.parametrize("kind", ["eof", "reset", "error_line"])
async def test_a_stream_that_breaks_off_ends_with_an_error_and_never_with_done(start: Start, kind: Any) -> None:
    async with both(start, Simulator(say=lambda _: LONG, faults=[Fault(kind, after=3)])) as run:
        answer = await streamed(await run.chat(stream=True))
    assert answer.text() and answer.broken["code"] in ("upstream_cut", "upstream_server")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_disconnects_ends_the_call_at_the_far_end(start: Start, stream: bool) -> None:
    async with both(start, Simulator(faults=[Fault("stall", after=0)])) as run:
        asking = asyncio.ensure_future(run.chat(stream=stream))
        await run.ollama.until(lambda: run.ollama.running == 1)
        asking.cancel()
        await asyncio.wait([asking])
        await run.ollama.until_abandoned(1)


# --- Ollama's dialect, and several upstreams ------------------------------------------------------------


async def test_the_stock_ollama_client_is_served_from_an_openai_upstream(start: Start) -> None:
    async with both(start) as run, ollama.AsyncClient(run.url) as client:
        answer = await client.chat(model="demo", messages=HI, options={"num_predict": 400, "top_p": 0.5})
        pieces = [one async for one in await client.chat(model="demo", messages=HI, stream=True)]
        made = await client.generate(model="demo", prompt="hi", system="Be brief.")
        vectors = await client.embed(model="demo-embed", input=["a", "b"])
        loaded = await client.generate(model="demo", prompt="")
        listed, shown, running_now = await client.list(), await client.show("demo"), await client.ps()
    assert answer.message.content and answer.eval_count and answer.done_reason == "stop"
    assert "".join(one.message.content or "" for one in pieces) == answer.message.content
    assert made.response and len(vectors.embeddings) == 2
    assert (loaded.done_reason, loaded.response) == ("load", "")
    assert {one.model for one in listed.models} >= {"demo:latest"} and listed.models[0].modified_at
    assert shown.capabilities == ["completion", "tools"] and shown.details and running_now.models == []
    assert [one["role"] for one in asked(run.ollama)[-1]["messages"]] == ["system", "user"]


async def test_the_models_of_an_ollama_and_of_an_openai_upstream_are_one_list(start: Start) -> None:
    async with scripted({"/v1/models": listing("gpt-x")}) as url:
        text = f"{BARE}\nupstreams: {{near: {{ollama: $OLLAMA}}, far: {{openai: '{url}'}}}}\n"
        async with start(text) as run, run.client() as client, ollama.AsyncClient(run.url) as native:
            models = {one.id: one.owned_by async for one in client.models.list()}
            tags = await native.list()
    assert models["gpt-x"] == "someone" and "demo:latest" in models
    assert {one.model for one in tags.models} == set(models)


async def test_concurrent_calls_share_one_request_for_the_model_list(start: Start) -> None:
    server = {"/v1/models": listing("m"), "/v1/chat/completions": answering("hi")}
    async with scripted(server) as url, start(near(url)) as run:
        await asyncio.gather(*(run.chat(model="m") for _ in range(10)))
    assert counted(server["/v1/models"]) == 1


# --- the quirks of other servers -----------------------------------------------------------------------


class Scripted:
    """Gives every request the same answer, and records the requests."""

    def __init__(self, body: bytes, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        self.body, self.status, self.kind, self.headers = body, status, kind, headers
        self.seen: list[tuple[Any, dict[str, Any]]] = []

    async def answer(self, request: web.Request) -> web.Response:
        sent = await request.read()
        self.seen.append((request.headers, json.loads(sent) if sent else {}))
        names = {name.replace("_", "-"): value for name, value in self.headers.items()}
        return web.Response(body=self.body, status=self.status, content_type=self.kind, headers=names)


@asynccontextmanager
async def scripted(answers: dict[str, Scripted]) -> AsyncIterator[str]:
    app = web.Application()
    for path, answer in answers.items():
        app.router.add_route("*", path, answer.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = Port(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


def counted(answer: Scripted) -> int:
    return len(answer.seen)


def listing(*names: str, **more: Any) -> Scripted:
    data = [{"id": name, "object": "model", "created": 5, "owned_by": "someone", **more} for name in names]
    return Scripted(json.dumps({"object": "list", "data": data}).encode())


def answering(text: str, finish: str = "stop") -> Scripted:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return Scripted(json.dumps({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}).encode())


def streaming(*chunks: Any, done: bool = True) -> Scripted:
    lines = [one if isinstance(one, bytes) else f"data: {json.dumps(one)}\r\n\r\n".encode() for one in chunks]
    return Scripted(b"".join(lines) + (b"data: [DONE]\r\n\r\n" if done else b""), kind="text/event-stream")


def delta(finish: str | None = None, **said: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": said, "finish_reason": finish}]}


@asynccontextmanager
async def served(start: Start, path: str, answer: Scripted, key: str = SECRET) -> AsyncIterator[Running]:
    async with scripted({"/v1/models": listing("m"), f"/v1{path}": answer}) as url, start(near(url, key=key)) as run:
        yield run


async def test_the_upstreams_key_and_model_name_are_sent_and_nothing_of_the_caller(start: Start) -> None:
    answer = answering("hi")
    server = {"/v1/models": listing("Org/Model-7B"), "/v1/chat/completions": answer}
    async with scripted(server) as url, start(near(url)) as run:
        headers = {"Cookie": "a=b", "X-Custom": "c", "User-Agent": "eve"}
        body = {"model": "org/model-7b", "messages": HI, "user": "eve", "metadata": {"a": "b"}, "store": True}
        response = await run.http.post(f"{run.url}/v1/chat/completions", json=body, headers=headers)
        assert said(await whole(response))["content"] == "hi"
    [(headers_sent, sent)] = answer.seen
    assert headers_sent["Authorization"] == f"Bearer {SECRET}"
    assert sent == {"model": "Org/Model-7B", "stream": False, "messages": HI}
    assert not {"Cookie", "X-Custom"} & set(headers_sent) and "eve" not in str(headers_sent)


async def test_a_stream_with_comments_and_carriage_returns_and_usage_at_the_end(start: Start) -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
    chunks = [b": OPENROUTER PROCESSING\n\n", delta(role="assistant", content=None), delta(content="a"), delta("stop")]
    async with served(start, "/chat/completions", streaming(*chunks, usage)) as run:
        answer = await streamed(await run.chat(model="m", stream=True, stream_options={"include_usage": True}))
    assert answer.text() == "a" and answer.done and answer.chunks[-1]["usage"]["prompt_tokens"] == 7


async def test_a_stream_that_ends_after_its_finish_without_done_is_whole(start: Start) -> None:
    async with served(start, "/chat/completions", streaming(delta(content="a"), delta("stop"), done=False)) as run:
        assert (await streamed(await run.chat(model="m", stream=True))).done


async def test_a_stream_with_done_but_no_finish_reason_counts_as_cut_off(start: Start) -> None:
    async with served(start, "/chat/completions", streaming(delta(content="a"))) as run:
        answer = await streamed(await run.chat(model="m", stream=True))
        assert answer.text() == "a" and answer.broken["code"] == "upstream_cut"


async def test_an_error_in_the_middle_of_a_stream_keeps_its_kind(start: Start) -> None:
    failure = {"error": {"message": "engine died", "type": "InternalServerError", "code": 500}}
    async with served(start, "/chat/completions", streaming(delta(content="a"), failure)) as run:
        answer = await streamed(await run.chat(model="m", stream=True))
        assert answer.broken["message"] == "engine died"


async def test_the_usage_of_several_choices_is_added_up(start: Start) -> None:
    """Including reasoning tokens, although the reasoning is not shown."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    asked, made = {"cached_tokens": 4}, {"reasoning_tokens": 20}
    usage: dict[str, Any] = {"prompt_tokens": 7, "completion_tokens": 25}
    usage |= {"prompt_tokens_details": asked, "completion_tokens_details": made}
    answer = Scripted(json.dumps({"choices": [choice], "usage": usage}).encode())
    async with served(start, "/chat/completions", answer) as run:
        took = (await whole(await run.chat(model="m", n=2)))["usage"]
    assert (took["prompt_tokens"], took["completion_tokens"]) == (7, 50)
    assert (took["prompt_tokens_details"], took["completion_tokens_details"]) == (asked, {"reasoning_tokens": 40})


@pytest.mark.parametrize("indent", [None, 2])
async def test_a_server_that_ignores_stream_and_answers_whole_is_streamed(start: Start, indent: int | None) -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"city":"Bonn"}'}}]
    message = {"role": "assistant", "content": "all of it", "tool_calls": calls}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    document = {"object": "chat.completion", "choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
    more: Any = {"stream": True, "stream_options": {"include_usage": True}, "tools": [function("f")]}
    async with served(start, "/chat/completions", Scripted(json.dumps(document, indent=indent).encode())) as run:
        answer = await streamed(await run.chat(model="m", **more))
    assert answer.text() == "all of it" and answer.done and answer.finishes() == ["tool_calls"]
    assert [call["id"] for one in answer.deltas() for call in one.get("tool_calls", ())] == ["c1"]
    assert answer.chunks[-1]["usage"]["prompt_tokens"] == 7


async def test_a_completion_that_comes_whole_is_streamed(start: Start) -> None:
    document = {"choices": [{"index": 0, "text": "all of it", "finish_reason": "length"}]}
    async with served(start, "/completions", Scripted(json.dumps(document).encode())) as run:
        url, body = f"{run.url}/v1/completions", {"model": "m", "prompt": "hi", "stream": True}
        async with run.http.post(url, json=body) as response:
            answer = await streamed(response)
    assert answer.done and "".join(one["choices"][0]["text"] for one in answer.chunks) == "all of it"


@pytest.mark.parametrize(
    ("document", "status", "message"),
    [
        (b'{"error": {"message": "engine died", "code": 500}}', 502, "engine died"),
        (b'{"object": "error", "message": "engine busy", "code": 503}', 503, "engine busy"),
        (b"<html>please log in</html>", 502, "The upstream sent something that is not a valid answer."),
        (b'{"choices": [{"message": {"content": "ha', 502, "The upstream sent something that is not a valid answer."),
    ],
)
async def test_an_error_instead_of_a_stream_keeps_its_message_and_status(
    start: Start, document: bytes, status: int, message: str
) -> None:
    async with served(start, "/chat/completions", Scripted(document)) as run:
        assert (await error_of(await run.chat(model="m", stream=True), status))["message"] == message


async def test_a_byte_order_mark_before_a_stream_costs_no_event(start: Start) -> None:
    chunks = [b"\xef\xbb\xbf", delta(content="all "), delta(content="of it"), delta("stop")]
    async with served(start, "/chat/completions", streaming(*chunks)) as run:
        assert (await streamed(await run.chat(model="m", stream=True))).text() == "all of it"


async def test_a_tool_call_in_pieces_is_put_together(start: Start) -> None:
    pieces = [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"city":'}},
        {"index": 0, "function": {"arguments": '"Bonn"}'}},
    ]
    chunks = [delta(tool_calls=[one]) for one in pieces]
    async with served(start, "/chat/completions", streaming(*chunks, delta("stop"))) as run:
        answer = await streamed(await run.chat(model="m", stream=True, tools=[function("f")]))
    [call] = [call for one in answer.deltas() for call in one.get("tool_calls", ())]
    assert (call["id"], call["function"]["arguments"]) == ("c1", '{"city":"Bonn"}')
    assert answer.finishes() == ["tool_calls"]


async def test_a_server_that_ignores_tool_choice_is_an_upstream_error(start: Start) -> None:
    async with served(start, "/chat/completions", answering("no")) as run:
        error = await error_of(await run.chat(model="m", tools=[function("f")], tool_choice="required"), 502)
        assert error["code"] == "upstream_invalid_answer"


@pytest.mark.parametrize(
    ("text", "strict", "status"), [('{"city": 5}', True, 502), ("words", False, 502), ('{"city": 5}', False, 200)]
)
async def test_a_server_that_ignores_a_schema_is_an_upstream_error(
    start: Start, text: str, strict: bool, status: int
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": strict}}
    async with served(start, "/chat/completions", answering(text)) as run:
        assert (await run.chat(model="m", response_format=form)).status == status


async def test_arguments_of_strict_tools_are_checked(start: Start) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"choices": [{"message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    async with served(start, "/chat/completions", Scripted(json.dumps(message).encode())) as run:
        assert (await run.chat(model="m", tools=[function("f", strict=True)])).status == 502
        assert (await run.chat(model="m", tools=[function("f")])).status == 200


async def test_an_answer_stopped_by_a_content_filter_has_that_finish_reason(start: Start) -> None:
    async with served(start, "/chat/completions", answering("", "content_filter")) as run:
        assert (await whole(await run.chat(model="m")))["choices"][0]["finish_reason"] == "content_filter"


BUSY = b'{"error":{"message":"slow down","code":"rate_limit_exceeded"}}'


@pytest.mark.parametrize(
    ("told", "wait"),
    [
        ({"Retry-After": "17"}, ("17", "17000")),
        ({"Retry-After": "2.5"}, ("3", "2500")),
        ({"retry-after-ms": "1500", "Retry-After": "9"}, ("2", "1500")),
        ({"Retry-After": "9", "retry-after-ms": "soon"}, ("9", "9000")),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}, ("1", "1")),
        ({"Retry-After": "whenever"}, ("1", "1000")),
    ],
)
@pytest.mark.parametrize("kind", ["openai", "ollama"])
async def test_retry_after_of_an_upstream_is_passed_on(
    start: Start, kind: str, told: dict[str, str], wait: tuple[str, str]
) -> None:
    busy, tags = Scripted(BUSY, 429, **told), Scripted(b'{"models":[{"name":"m:latest","model":"m:latest"}]}')
    running = Scripted(b'{"models":[{"name":"m:latest","model":"m:latest","expires_at":"2999-01-01T00:00:00Z"}]}')
    server = {"/v1/models": listing("m"), "/v1/chat/completions": busy}
    server |= {"/api/tags": tags, "/api/ps": running, "/api/show": Scripted(b"{}"), "/api/chat": busy}
    async with scripted(server) as url:
        text = f"{BARE}\nupstreams: {{far: {{{kind}: '{url if kind == 'openai' else url.removesuffix('/v1')}'}}}}\n"
        async with start(text) as run:
            response = await run.chat(model="m")
            assert (await error_of(response, 503))["code"] == "upstream_overloaded" and counted(busy) == 1
            assert (response.headers["Retry-After"], response.headers["retry-after-ms"]) == wait


async def test_insufficient_quota_is_not_retried(start: Start) -> None:
    broke = Scripted(b'{"error":{"message":"no money","type":"insufficient_quota"}}', 429)
    text = "chains: {chat: [retry]}\nplugins: {retry: {wait: 0}}\n"
    server = {"/v1/models": listing("m"), "/v1/chat/completions": broke}
    async with scripted(server) as url, start(text + f"upstreams: {{far: {{openai: '{url}'}}}}\n") as run:
        response = await run.chat(model="m")
        assert (await error_of(response, 503))["code"] == "insufficient_quota"
        assert counted(broke) == 1


async def test_a_key_that_an_upstream_echoes_is_not_revealed(start: Start) -> None:
    echo = Scripted(f'{{"error":{{"message":"bad {SECRET}"}}}}'.encode(), 400)
    async with served(start, "/chat/completions", echo) as run:
        assert SECRET not in (await error_of(await run.chat(model="m"), 400))["message"]


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"choices":[]}', b'{"choices":[{"message":{}}]}'])
async def test_an_invalid_answer_is_a_bad_gateway(start: Start, body: bytes) -> None:
    async with served(start, "/chat/completions", Scripted(body)) as run:
        assert (await run.chat(model="m")).status == 502


async def test_more_dimensions_than_requested_are_cut_and_fewer_are_refused(start: Start) -> None:
    rows = Scripted(b'{"data":[{"index":0,"embedding":[3,4,12]}]}')
    async with served(start, "/embeddings", rows) as run:
        made = await whole(await run.embed(model="m", dimensions=2))
        assert made["data"][0]["embedding"] == [pytest.approx(0.6), pytest.approx(0.8)]
        assert (await error_of(await run.embed(model="m", dimensions=4), 400))["param"] == "dimensions"


async def test_a_reload_changes_the_key(start: Start) -> None:
    answer = answering("hi")
    server = {"/v1/models": listing("m"), "/v1/chat/completions": answer}
    async with scripted(server) as url, start(near(url)) as run:
        await whole(await run.chat(model="m"))
        run.configure(near(url, key="sk-new"))
        assert await run.server.reload()
        await whole(await run.chat(model="m"))
    assert [headers["Authorization"] for headers, _ in answer.seen] == [f"Bearer {SECRET}", "Bearer sk-new"]


@pytest.mark.parametrize("key", ['"a\\nb"', '"ä"', '""', '"a b"'])
def test_a_key_that_could_break_a_header_is_a_configuration_error(key: str) -> None:
    text = f"chains: {{}}\nupstreams: {{far: {{openai: 'http://x/v1', key: {key}}}}}\n"
    with pytest.raises(ConfigError, match="printable ASCII"):
        configuration.read("x.yaml", text, registry.problems_of, {})


@pytest.mark.parametrize(
    ("kind", "end", "told"),
    [
        ("openai", "/v2", "/v2 answers, but has no /models: an `openai` URL is all that stands before it"),
        ("ollama", "", " answers, but has no /api/tags: an `ollama` URL has no path such as /v1"),
    ],
)
async def test_a_wrong_upstream_url_is_explained_in_a_bad_gateway_error(
    start: Start, kind: str, end: str, told: str
) -> None:
    async with scripted({"/v1/models": listing("m")}) as url:
        bare = url.removesuffix("/v1")
        async with start(f"{BARE}\nupstreams: {{far: {{{kind}: '{bare}{end}'}}}}\nplugins: {{}}") as run:
            for response in (await run.chat(), await run.http.get(f"{run.url}/v1/models")):
                error = await error_of(response, 502)
                assert f"{bare}{told}" in error["message"] and response.headers["x-should-retry"] == "false"


async def test_a_refused_model_list_is_a_bad_gateway_and_does_not_affect_other_upstreams(start: Start) -> None:
    refused = Scripted(b'{"error": {"message": "which tenant?"}}', 400)
    async with scripted({"/v1/models": refused}) as url:
        async with start(near(url)) as run:
            error = await error_of(await run.chat(), 502)
            assert "which tenant?" in error["message"]
        async with start(f"{BARE}\nupstreams: {{far: {{openai: '{url}'}}, near: {{ollama: $OLLAMA}}}}\n") as run:
            assert (await run.chat()).status == (await run.http.get(f"{run.url}/v1/models")).status == 200


async def test_the_interface_that_a_pool_uses(start: Start) -> None:
    """What is known about its models, with and without a request."""
    server = {"/v1/models": listing("Org/M")}
    async with scripted(server) as url, start() as run:
        upstream = Upstream(openai=(url,))
        member = OpenAI(url, upstream, run.server.services)
        assert member.known("org/m:latest") is None and counted(server["/v1/models"]) == 0
        await member.poll()
        found = member.known("org/m:latest")
        assert found is not None and found.name == "Org/M" and member.warm("org/m:latest")
        assert await member.find("ORG/M") == found and list(await member.models()) == ["org/m:latest"]
        assert (await member.version(), await member.running(), member.url) == ("", [], url)
    with pytest.raises(UpstreamError):
        await OpenAI(dead_url(), upstream, run.server.services).version()
