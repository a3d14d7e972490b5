"""Every parameter of a call: what Ollama receives for it, what is answered, and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import jsonschema_rs
import pytest
from aiohttp import web

from proxy.config import Requests
from proxy.edge.images import Images, is_public
from proxy.errors import BadCall
from proxy.port import Port
from proxy.types import Chat, Image, Message
from proxy.upstreams.demo import CATALOGUE, Model, Said, Simulator
from tests.conftest import HI, Start
from tests.whole.asking import (
    GIF,
    PNG,
    asked,
    data_url,
    error_of,
    function,
    loading,
    picture,
    said,
    schema,
    streamed,
    user,
    whole,
)

STRICT = "chains: {chat: [], embeddings: []}\nparams: strict"
CHATS = "chains: {chat: []}\n"
MODELS = ["demo", "demo-rendered"]
Json = dict[str, Any]


def called(document: Json, choice: int = 0) -> list[tuple[str, Json]]:
    calls = said(document, choice).get("tool_calls") or ()
    return [(one["function"]["name"], json.loads(one["function"]["arguments"])) for one in calls]


# --- sampling --------------------------------------------------------------------------------------


async def test_ollama_gets_only_the_options_that_the_request_had(start: Start) -> None:
    async with start() as run:
        await whole(await run.chat())
        await streamed(await run.chat(stream=True))
    for body, stream in zip(asked(run.ollama), (False, True), strict=True):
        assert body == {"model": "demo:latest", "stream": stream, "truncate": False, "shift": False, "messages": HI}


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 1.5, "top_p": 0.5}, {"temperature": 1.5, "top_p": 0.5}),
        ({"max_tokens": 9}, {"num_predict": 9}),
        ({"max_completion_tokens": 9}, {"num_predict": 9}),
        ({"seed": 42}, {"seed": 42}),
        ({"stop": "x"}, {"stop": ["x"]}),
        ({"stop": ["x", "y"]}, {"stop": ["x", "y"]}),
        ({"presence_penalty": -1, "frequency_penalty": 1.5}, {"presence_penalty": -1, "frequency_penalty": 1.5}),
        ({"options": {"top_k": 5, "min_p": 0.1, "repeat_penalty": 1.2, "num_predict": 3}},
         {"top_k": 5, "min_p": 0.1, "repeat_penalty": 1.2, "num_predict": 3}),
        ({"temperature": 0.3, "options": {"temperature": 0.9, "top_k": 1}}, {"temperature": 0.3, "top_k": 1}),
        ({"options": {"temperature": 0.9, "top_k": 1}, "temperature": 0.3}, {"temperature": 0.3, "top_k": 1}),
        ({"temperature": None, "max_tokens": None, "stop": None, "seed": None}, None),
    ],
)  # fmt: skip
async def test_sampling_options_reach_ollama_unchanged(start: Start, given: Json, options: Json) -> None:
    async with start() as run:
        await whole(await run.chat(**given))
    assert asked(run.ollama)[0].get("options") == options


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 2.1}, {"temperature": -0.1}, {"temperature": "1"}, {"temperature": True}, {"top_p": 1.01},
        {"max_tokens": 0}, {"max_tokens": 1.5}, {"max_completion_tokens": -1}, {"seed": "7"}, {"stop": [1]},
        {"stop": 1}, {"presence_penalty": 3}, {"frequency_penalty": "x"}, {"n": 0}, {"n": 9}, {"n": True},
        {"top_logprobs": 21, "logprobs": True}, {"top_logprobs": 2}, {"logprobs": 1}, {"stream": "yes"},
        {"reasoning_effort": "a lot"}, {"tool_choice": "required"}, {"tool_choice": "sometimes"}, {"tools": {}},
        {"tools": [{"type": "function"}]}, {"tools": [{"type": "web_search"}]}, {"response_format": "json"},
        {"response_format": {"type": "xml"}}, {"response_format": {"type": "json_schema"}}, {"options": []},
        {"logit_bias": {"50256": -100}}, {"audio": {"voice": "x"}}, {"modalities": ["text", "audio"]},
        {"prediction": {"type": "content", "content": "x"}}, {"metadata": {"a": 1}}, {"model": ""}, {"model": 3},
        {"model": None}, {"messages": []}, {"messages": "hi"}, {"messages": None}, {"parallel_tool_calls": "no"},
        {"messages": [{"role": "wizard", "content": "x"}]}, {"messages": [{"role": "user"}]},
        {"messages": [{"content": "x"}]}, {"messages": ["x"]}, {"messages": [{"role": "user", "content": 3}]},
        {"messages": [{"role": "assistant"}]}, {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
    ],
)  # fmt: skip
async def test_invalid_parameters_are_refused_without_calling_ollama(start: Start, given: Json) -> None:
    async with start() as run:
        error = await error_of(await run.chat(**given), 400)
    name = next(iter(given))
    assert error["type"] == "invalid_request_error" and error["param"].split("[")[0].split(".")[0] == name
    assert not run.ollama.seen


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("model", MODELS)
async def test_an_answer_ends_at_max_tokens(start: Start, name: str, model: str) -> None:
    async with start() as run:
        document = await whole(await run.chat(model=model, **{name: 3}))
        stream = await streamed(await run.chat(model=model, stream=True, **{name: 3}))
    assert document["choices"][0]["finish_reason"] == "length" and document["usage"]["completion_tokens"] == 3
    assert stream.finishes() == ["length"] and stream.text() == said(document)["content"]


async def test_an_answer_ends_before_a_stop_sequence(start: Start) -> None:
    async with start() as run:
        document = await whole(await run.chat(stop=["answer"]))
    assert said(document)["content"] == "This is a simulated "
    assert document["choices"][0]["finish_reason"] == "stop"


async def test_each_choice_gets_its_own_seed(start: Start) -> None:
    async with start() as run:
        response = await run.chat(n=3, seed=7)
        await whole(response)
        await whole(await run.chat(n=2))
    assert sorted(body["options"]["seed"] for body in asked(run.ollama)[:3]) == [7, 8, 9]
    assert all("options" not in body for body in asked(run.ollama)[3:])
    assert response.headers["x-gemmapy-params"] == "n=emulated"


# --- response_format -------------------------------------------------------------------------------

CITY = {
    "name": {"type": "string"},
    "people": {"type": "integer", "minimum": 5},
    "river": {"anyOf": [{"$ref": "#/$defs/River"}, {"type": "null"}]},
    "kind": {"enum": ["free", "imperial"]},
}
RIVER = {"type": "object", "properties": {"km": {"type": "number"}}, "required": ["km"], "additionalProperties": False}


def city_format(**more: Any) -> Json:
    wanted = schema(CITY, **more)
    wanted["json_schema"]["schema"]["$defs"] = {"River": RIVER}
    return wanted


@pytest.mark.parametrize("model", ["demo", "demo-rendered", "demo-thinking"])
@pytest.mark.parametrize("strict", [None, True, False])
async def test_an_answer_fits_its_schema(start: Start, model: str, strict: bool | None) -> None:
    wanted = city_format() if strict is None else city_format(strict=strict)
    async with start() as run:
        document = await whole(await run.chat(model=model, response_format=wanted))
        stream = await streamed(await run.chat(model=model, response_format=wanted, stream=True))
    shape = wanted["json_schema"]["schema"]
    jsonschema_rs.validate(shape, json.loads(said(document)["content"]))
    jsonschema_rs.validate(shape, json.loads(stream.text()))
    assert stream.done


async def test_a_schema_is_enforced_and_shown_to_the_model(start: Start) -> None:
    async with start() as run:
        await whole(await run.chat(response_format=city_format()))
        await whole(await run.chat(messages=[{"role": "system", "content": "S"}, *HI], response_format=city_format()))
    plain, with_system = asked(run.ollama)
    assert plain["format"] == city_format()["json_schema"]["schema"]
    assert [one["role"] for one in plain["messages"]] == ["user"], "the model's own system message stays"
    assert plain["messages"][0]["content"].startswith("hi") and '"minimum":5' in plain["messages"][0]["content"]
    assert with_system["messages"][0]["content"].startswith("S")
    assert "River" in with_system["messages"][0]["content"] and with_system["messages"][1:] == HI


async def test_json_without_a_schema_is_json(start: Start) -> None:
    async with start() as run:
        document = await whole(await run.chat(response_format={"type": "json_object"}))
        text = await whole(await run.chat(response_format={"type": "text"}))
    assert json.loads(said(document)["content"])["simulated"] is True
    assert asked(run.ollama)[0]["format"] == "json" and "format" not in asked(run.ollama)[1]
    assert "simulated answer" in said(text)["content"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("wanted", "words"),
    [(city_format(), '{"name": 1}'), (city_format(), "no JSON"), ({"type": "json_object"}, "no JSON either")],
)
async def test_an_answer_that_does_not_match_its_format_is_an_error(
    start: Start, stream: bool, wanted: Json, words: str
) -> None:
    async with start(ollama=Simulator(say=lambda body: Said(words))) as run:
        response = await run.chat(response_format=wanted, stream=stream)
        error = (await streamed(response)).broken if stream else await error_of(response, 502)
    assert error["code"] == "upstream_invalid_answer"


async def test_a_schema_can_refer_into_an_any_of(start: Start) -> None:
    """Some schema generators define a shape at its first use and refer to it from the others."""
    name = {"anyOf": [{"type": "null"}, {"type": "string"}]}
    schema = {"type": "object", "properties": {"a name": name, "name": {"$ref": "#/properties/a%20name/anyOf/1"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    async with start(ollama=Simulator(say=lambda body: Said('{"name": 1}'))) as run:
        error = await error_of(await run.chat(response_format=wanted), 502)
    assert error["code"] == "upstream_invalid_answer"


async def test_an_answer_need_not_match_a_schema_that_is_not_strict(start: Start) -> None:
    async with start(ollama=Simulator(say=lambda body: Said('{"name": 1}'))) as run:
        document = await whole(await run.chat(response_format=city_format(strict=False)))
    assert said(document)["content"] == '{"name": 1}'


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "objekt"},
        {"$ref": "https://example.com/schema.json"},
        {"type": "object", "properties": 3},
        {"anyOf": [{"type": "null"}], "allOf": [{"$ref": f"#/anyOf/{'9' * 5000}"}]},
        {"anyOf": [{"type": "null"}], "allOf": [{"$ref": "#/anyOf/\u00b2"}]},
    ],
)
async def test_an_invalid_schema_is_refused_without_calling_ollama(start: Start, wrong: Json) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": wrong}}
    async with start() as run:
        error = await error_of(await run.chat(response_format=wanted), 400)
    assert error["param"] == "response_format" and error["code"] == "invalid_schema"
    assert not run.ollama.calls["/api/chat"]


# --- tools -----------------------------------------------------------------------------------------

WEATHER, CLOCK = function("get_weather"), function("tell_time", {})
BOTH = user("get_weather and tell_time!")


@pytest.mark.parametrize("model", MODELS)
async def test_auto_leaves_tools_to_the_model(start: Start, model: str) -> None:
    async with start() as run:
        document = await whole(await run.chat(model=model, messages=BOTH, tools=[WEATHER, CLOCK], tool_choice="auto"))
        words = await whole(await run.chat(model=model, tools=[WEATHER, CLOCK]))
    assert [name for name, _ in called(document)] == ["get_weather", "tell_time"]
    assert document["choices"][0]["finish_reason"] == "tool_calls" and said(document)["content"] is None
    assert not called(words) and words["choices"][0]["finish_reason"] == "stop"
    sent = asked(run.ollama)[0]["tools"]
    assert [tool["function"]["name"] for tool in sent] == ["get_weather", "tell_time"] and "format" not in words


@pytest.mark.parametrize("model", MODELS)
async def test_none_hides_the_tools(start: Start, model: str) -> None:
    async with start() as run:
        response = await run.chat(model=model, messages=BOTH, tools=[WEATHER], tool_choice="none")
        document = await whole(response)
    assert not called(document) and "tools" not in asked(run.ollama)[0]
    assert response.headers["x-gemmapy-params"] == "tool_choice=emulated"


@pytest.mark.parametrize("model", [*MODELS, "demo-thinking"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"get_weather", "tell_time"}),
        ({"type": "function", "function": {"name": "tell_time"}}, {"tell_time"}),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "tell_time"}}],
                },
            },
            {"tell_time"},
        ),
    ],
)
async def test_a_tool_that_must_be_called_is_called(
    start: Start, model: str, stream: bool, choice: Any, names: set[str]
) -> None:
    body = {"model": model, "messages": user("say hello"), "tools": [WEATHER, CLOCK], "tool_choice": choice}
    async with start() as run:
        response = await run.chat(stream=stream, **body)
        if stream:
            answer = await streamed(response)
            assert answer.done and answer.finishes() == ["tool_calls"] and not answer.text()
            calls = [call for delta in answer.deltas() for call in delta.get("tool_calls") or ()]
        else:
            document = await whole(response)
            assert document["choices"][0]["finish_reason"] == "tool_calls" and said(document)["content"] is None
            calls = said(document)["tool_calls"]
    assert len(calls) == 1 and calls[0]["function"]["name"] in names and calls[0]["id"].startswith("call_")
    assert isinstance(json.loads(calls[0]["function"]["arguments"]), dict)
    assert response.headers["x-gemmapy-params"] == "tool_choice=emulated"


async def test_allowed_tools_are_all_that_the_model_sees(start: Start) -> None:
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "tell_time"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    async with start() as run:
        document = await whole(await run.chat(messages=BOTH, tools=[WEATHER, CLOCK], tool_choice=choice))
    assert [name for name, _ in called(document)] == ["tell_time"]
    assert len(asked(run.ollama)[0]["tools"]) == 1


async def test_a_tool_that_is_not_offered_cannot_be_forced(start: Start) -> None:
    choice = {"type": "function", "function": {"name": "other"}}
    async with start() as run:
        error = await error_of(await run.chat(tools=[WEATHER], tool_choice=choice), 400)
    assert error["param"] == "tool_choice" and not run.ollama.seen


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_that_does_not_call_although_it_must_is_an_error(start: Start, stream: bool) -> None:
    async with start(ollama=Simulator(say=lambda body: Said('{"name": "other", "arguments": {}}'))) as run:
        response = await run.chat(tools=[WEATHER], tool_choice="required", stream=stream)
        error = await error_of(response, 502)
    assert error["code"] == "upstream_invalid_answer"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stream", [False, True])
async def test_without_parallel_calls_there_is_one(start: Start, model: str, stream: bool) -> None:
    body = {"model": model, "messages": BOTH, "tools": [WEATHER, CLOCK], "parallel_tool_calls": False}
    async with start() as run:
        response = await run.chat(stream=stream, **body)
        if stream:
            deltas = (await streamed(response)).deltas()
            names = [call["function"]["name"] for delta in deltas for call in delta.get("tool_calls") or ()]
        else:
            names = [name for name, _ in called(await whole(response))]
    assert names == ["get_weather"]
    assert response.headers["x-gemmapy-params"] == "parallel_tool_calls=emulated"


@pytest.mark.parametrize("model", MODELS)
async def test_a_tool_without_parameters_is_offered_as_one(start: Start, model: str) -> None:
    bare = {"type": "function", "function": {"name": "tell_time"}}
    async with start() as run:
        document = await whole(await run.chat(model=model, messages=user("tell_time"), tools=[bare]))
    assert called(document) == [("tell_time", {})]


async def test_arguments_that_do_not_fit_a_strict_tool_are_an_error(start: Start) -> None:
    ollama = Simulator(say=lambda body: Said(tool_calls=(("get_weather", {"city": 3}),)))
    async with start(ollama=ollama) as run:
        error = await error_of(await run.chat(tools=[function("get_weather", strict=True)]), 502)
        lenient = await whole(await run.chat(tools=[WEATHER]))
    assert error["code"] == "upstream_invalid_answer" and "get_weather" in error["message"]
    assert called(lenient) == [("get_weather", {"city": 3})]


@pytest.mark.parametrize("model", MODELS)
async def test_deprecated_functions_are_answered_in_the_deprecated_shape(start: Start, model: str) -> None:
    functions = [WEATHER["function"]]
    messages: list[Json] = user("get_weather")
    async with start() as run:
        document = await whole(await run.chat(model=model, messages=messages, functions=functions))
        stream = await streamed(await run.chat(model=model, messages=messages, functions=functions, stream=True))
        forced = await whole(await run.chat(model=model, functions=functions, function_call={"name": "get_weather"}))
        never = await whole(await run.chat(model=model, messages=messages, functions=functions, function_call="none"))
        messages += [said(document), {"role": "function", "name": "get_weather", "content": "4 degrees"}]
        answer = await whole(await run.chat(model=model, messages=messages, functions=functions))
    assert said(document)["function_call"]["name"] == "get_weather" and "tool_calls" not in said(document)
    assert document["choices"][0]["finish_reason"] == "function_call" == stream.finishes()[0]
    assert [delta["function_call"]["name"] for delta in stream.deltas() if "function_call" in delta] == ["get_weather"]
    assert said(forced)["function_call"]["name"] == "get_weather" and "function_call" not in said(never)
    assert "4 degrees" in said(answer)["content"]


# --- thinking --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effort", "think", "note"),
    [
        ("none", False, None),
        ("minimal", "low", "changed"),
        ("low", "low", None),
        ("medium", "medium", None),
        ("high", "high", None),
        ("xhigh", "max", "changed"),
    ],
)
async def test_reasoning_effort_reaches_a_thinking_model(
    start: Start, effort: str, think: Any, note: str | None
) -> None:
    async with start() as run:
        response = await run.chat(model="demo-thinking", reasoning_effort=effort)
        message = said(await whole(response))
    assert asked(run.ollama)[0]["think"] == think
    assert ("reasoning_content" in message) == (effort != "none")
    assert response.headers.get("x-gemmapy-params") == (note and f"reasoning_effort={note}")


@pytest.mark.parametrize(("effort", "note"), [("high", "reasoning_effort=ignored"), ("none", None)])
async def test_reasoning_effort_is_ignored_by_a_model_that_cannot_think(
    start: Start, effort: str, note: str | None
) -> None:
    async with start() as run:
        response = await run.chat(reasoning_effort=effort)
        await whole(response)
    assert "think" not in asked(run.ollama)[0]
    assert response.headers.get("x-gemmapy-params") == note


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_of_earlier_turns_can_be_sent_back(start: Start, stream: bool) -> None:
    messages = [*HI, {"role": "assistant", "content": "x", "reasoning_content": "because"}, *HI]
    async with start() as run:
        response = await run.chat(model="demo-thinking", messages=messages, stream=stream)
        assert await response.read() and response.status == 200
    assert asked(run.ollama)[0]["messages"][1]["thinking"] == "because"


# --- what never changes ----------------------------------------------------------------------------


async def test_a_mixed_load_never_makes_ollama_load_a_model_again(start: Start) -> None:
    yaml = """chains: {chat: [], embeddings: []}
models:
  "*": {num_ctx: 2048, keep_alive: 10m}
  demo-rendered: {num_ctx: 1024, num_batch: 256, shift: true, keep_alive: -1}
"""
    theirs: list[Json] = [
        {},
        {"options": {"num_ctx": 64}, "keep_alive": 0},
        {"options": {"num_gpu": 0, "num_thread": 1, "num_batch": 8, "use_mmap": False, "main_gpu": 1}},
        {"num_ctx": 100_000, "truncate": True, "shift": True, "keep_alive": "1s"},
        {"max_tokens": 5, "temperature": 0, "n": 2},
        {"response_format": {"type": "json_object"}},
        {"tools": [WEATHER], "tool_choice": "required"},
    ]
    async with start(yaml) as run:
        calls = [
            run.chat(model=model, stream=stream, **one)
            for one in theirs
            for model in ("demo", "demo-rendered", "Demo:latest")
            for stream in (False, True)
        ]
        calls += [run.embed(**one) for one in theirs[:4]]
        for response in await asyncio.gather(*calls):
            assert response.status == 200, await response.text()
            await response.read()
        assert (run.ollama.loads, run.ollama.reloads, run.ollama.evictions) == (3, 0, 0)
        bodies = [(one.path, one.body) for one in run.ollama.seen if one.method == "POST"]
    pinned: dict[str, set[str]] = {}
    for path, body in bodies:
        kept = {name: body["options"][name] for name in ("num_ctx", "num_batch") if name in body["options"]}
        assert not {"num_gpu", "num_thread", "use_mmap", "main_gpu"} & set(body["options"])
        assert body.get("truncate", False) is False
        shown = json.dumps([kept, body.get("shift"), body["keep_alive"]])
        pinned.setdefault(f"{path} {body['model']}", set()).add(shown)
    assert pinned == {
        "/api/chat demo:latest": {'[{"num_ctx": 2048}, false, "10m"]'},
        "/api/chat demo-rendered:latest": {'[{"num_ctx": 1024, "num_batch": 256}, true, -1.0]'},
        "/api/embed demo-embed:latest": {'[{"num_ctx": 2048}, null, "10m"]'},
    }
    assert loading(run.ollama) and loading(run.ollama, "/api/embed")


async def test_every_call_forbids_silent_truncation(start: Start) -> None:
    async with start() as run:
        for body in ({}, {"truncate": True}, {"options": {"truncate": True}}, {"shift": True}):
            await whole(await run.chat(**body))
        await whole(await run.embed(truncate=True))
    sent = [*asked(run.ollama), *asked(run.ollama, "/api/embed")]
    assert [body["truncate"] for body in sent] == [False] * 5
    assert [body["shift"] for body in sent[:4]] == [False] * 4


async def test_ignored_parameters_are_reported_in_a_header(start: Start) -> None:
    theirs = {"keep_alive": 0, "verbosity": "low", "made_up": 1, "options": {"num_ctx": 9, "mirostat": 2, "top_k": 3}}
    async with start() as run:
        response = await run.chat(**theirs, stream_options={"include_obfuscation": True})
        embedded = await run.embed(made_up=1, options={"num_ctx": 9})
        await whole(response)
    assert set(response.headers["x-gemmapy-params"].split(", ")) == {
        "keep_alive=ignored", "verbosity=ignored", "made_up=ignored", "options.num_ctx=ignored",
        "options.mirostat=ignored", "stream_options.include_obfuscation=ignored",
    }  # fmt: skip
    assert set(embedded.headers["x-gemmapy-params"].split(", ")) == {"made_up=ignored", "options=ignored"}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"keep_alive": "1h"}, "keep_alive"),
        ({"options": {"num_ctx": 64}}, "options.num_ctx"),
        ({"verbosity": "low"}, "verbosity"),
        ({"made_up": 1}, "made_up"),
        ({"n": 2}, "n"),
        ({"tools": [WEATHER], "tool_choice": "none"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"reasoning_effort": "xhigh", "model": "demo-thinking"}, "reasoning_effort"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options.include_obfuscation"),
        ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages.name"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_strict_server_refuses_what_it_cannot_honour(
    start: Start, given: Json, param: str, stream: bool
) -> None:
    async with start(STRICT) as run:
        error = await error_of(await run.chat(**given, stream=stream), 400)
    assert error["param"] == param and error["code"] == "unsupported_parameter"
    assert not run.ollama.calls["/api/chat"]


async def test_a_strict_server_answers_what_it_can_honour(start: Start) -> None:
    theirs = {"temperature": 0.5, "user": "bob", "metadata": {"a": "b"}, "response_format": city_format()}
    async with start(STRICT) as run:
        await whole(await run.chat(**theirs))
        await whole(await run.chat(tools=[WEATHER], tool_choice="auto", reasoning_effort="none"))
        await whole(await run.embed(dimensions=8, user="bob", encoding_format="base64"))
        error = await error_of(await run.embed(made_up=1), 400)
    assert error["param"] == "made_up"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_overlong_prompt_is_an_error_and_is_never_cut(start: Start, model: str, stream: bool) -> None:
    yaml = CHATS + 'models: {"*": {num_ctx: 256}}'
    messages = [*user("old words " * 200), {"role": "assistant", "content": "x"}, *user("short")]
    async with start(yaml) as run:
        error = await error_of(await run.chat(model=model, messages=messages, stream=stream), 400)
    assert error["code"] == "context_length_exceeded" and error["param"] == "messages"
    assert error["type"] == "invalid_request_error" and "256" in error["message"]


@pytest.mark.parametrize("model", MODELS)
async def test_an_answer_that_fills_the_context_has_the_finish_reason_length(start: Start, model: str) -> None:
    yaml = CHATS + 'models: {"*": {num_ctx: 64}}'
    async with start(yaml, Simulator(say=lambda body: Said("many words " * 100))) as run:
        document = await whole(await run.chat(model=model))
    assert document["choices"][0]["finish_reason"] == "length"
    assert document["usage"]["total_tokens"] <= 65


# --- models ----------------------------------------------------------------------------------------


async def test_embeddings_of_a_chat_model_are_refused(start: Start) -> None:
    async with start() as run:
        error = await error_of(await run.embed(model="demo"), 400)
    assert error["param"] == "model" and error["code"] == "model_not_capable"
    assert {one.path for one in run.ollama.seen} <= {"/api/tags", "/api/show"}


async def test_a_chat_with_an_embedding_model_is_refused(start: Start) -> None:
    async with start() as run:
        error = await error_of(await run.chat(model="demo-embed"), 400)
    assert error["type"] == "invalid_request_error" and error["param"] == "model"


async def test_a_model_without_tools_says_so(start: Start) -> None:
    ollama = Simulator(models=[Model("plain:latest", frozenset({"completion"}))])
    async with start(ollama=ollama) as run:
        error = await error_of(await run.chat(model="plain", tools=[WEATHER]), 400)
    assert error["param"] == "tools"


CLOUD = (*CATALOGUE, *(Model(name, frozenset({"completion"})) for name in ("big:120b-cloud", "big:cloud", "cloud:1b")))


@pytest.mark.parametrize("name", ["big:120b-cloud", "big:cloud", "BIG:Cloud", "other:cloud", "library/big:120b-cloud"])
async def test_cloud_models_are_refused(start: Start, name: str) -> None:
    async with start(ollama=Simulator(models=CLOUD)) as run, run.client() as client:
        error = await error_of(await run.chat(model=name), 404)
        listed = {model.id async for model in client.models.list()}
        found = await run.http.get(f"{run.url}/v1/models/{name}")
        assert found.status == 404
    assert error["code"] == "model_not_found" and "cloud:1b" in listed and not {"big:120b-cloud", "big:cloud"} & listed
    assert not run.ollama.calls["/api/chat"]


async def test_a_copy_of_a_cloud_model_is_refused_under_any_name(start: Start) -> None:
    copied = Model("mine:latest", frozenset({"completion"}), remote="https://ollama.com:443")
    async with start(ollama=Simulator(models=(*CATALOGUE, copied))) as run, run.client() as client:
        await error_of(await run.chat(model="mine"), 404)
        assert "mine:latest" not in {model.id async for model in client.models.list()}
    assert not run.ollama.calls["/api/chat"]


async def test_an_alias_does_not_lead_to_the_cloud(start: Start) -> None:
    async with start(CHATS + "models: {mine: {alias: 'big:cloud'}}", Simulator(models=CLOUD)) as run:
        await error_of(await run.chat(model="mine"), 404)
    assert not run.ollama.calls["/api/chat"]


async def test_cloud_models_can_be_allowed(start: Start) -> None:
    yaml = CHATS + "upstreams: {local: {ollama: $OLLAMA, allow_cloud: true}}"
    async with start(yaml, Simulator(models=CLOUD)) as run, run.client() as client:
        assert "big:cloud" in {model.id async for model in client.models.list()}


ALIASES = """chains: {chat: [], embeddings: []}
models:
  gpt-4o-mini: {alias: demo}
  text-embedding-3-small: {alias: "demo-embed:latest"}
  team/fast: {alias: demo-rendered}
  demo-rendered: {num_ctx: 512}
"""


async def test_an_alias_is_another_name_of_its_model(start: Start) -> None:
    async with start(ALIASES) as run, run.client() as client:
        response = await run.chat(model="gpt-4o-mini")
        document = await whole(response)
        embedded = await whole(await run.embed(model="text-embedding-3-small"))
        await whole(await run.chat(model="team/fast"))
        listed = {model.id async for model in client.models.list()}
        one = await client.models.retrieve("team/fast")
    assert document["model"] == "gpt-4o-mini" and embedded["model"] == "text-embedding-3-small"
    assert response.headers["x-gemmapy-model"] == "demo:latest"
    assert [body["model"] for body in asked(run.ollama)] == ["demo:latest", "demo-rendered:latest"]
    assert asked(run.ollama)[1]["options"] == {"num_ctx": 512}, "a setting of the model applies under its alias, too"
    assert {"gpt-4o-mini", "team/fast", "demo:latest"} <= listed and one.id == "team/fast"


async def test_only_allowed_models_can_be_called_and_others_look_unknown(start: Start) -> None:
    yaml = 'chains: {chat: [], embeddings: []}\nmodels: {"*": {allowed: false}, demo: {}, fine: {alias: demo-rendered}}'
    async with start(yaml) as run, run.client() as client:
        await whole(await run.chat(model="demo"))
        await whole(await run.chat(model="demo:latest"))
        await whole(await run.chat(model="fine"))
        hidden = [await error_of(await run.chat(model=name), 404) for name in ("demo-rendered", "DEMO-Rendered:latest")]
        unknown = await error_of(await run.chat(model="nobody"), 404)
        embedded = await error_of(await run.embed(), 404)
        listed = {model.id async for model in client.models.list()}
    assert {error["code"] for error in (*hidden, unknown, embedded)} == {"model_not_found"}
    assert hidden[0]["message"].replace("demo-rendered", "nobody") == unknown["message"], (
        "the error must not reveal that the model exists"
    )
    assert listed == {"demo:latest", "fine"}


async def test_a_single_model_can_be_forbidden(start: Start) -> None:
    async with start(CHATS + "models: {demo: {allowed: false}}") as run:
        await error_of(await run.chat(model="demo"), 404)
        await error_of(await run.chat(model="library/demo"), 404)
        await whole(await run.chat(model="demo-rendered"))


# --- older servers -------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
async def test_an_older_ollama_works_too(start: Start, model: str) -> None:
    async with start(ollama=Simulator(profile="old")) as run:
        for _ in range(2):  # the second prompt is cached, so older servers do not report its tokens
            document = await whole(await run.chat(model=model, stream_options={"include_usage": True}))
            stream = await streamed(await run.chat(model=model, stream=True))
        tools = await whole(await run.chat(model=model, messages=BOTH, tools=[WEATHER, CLOCK]))
        logprobs = await whole(await run.chat(model=model, logprobs=True))
        embedded = await whole(await run.embed())
    assert said(document)["content"] == stream.text() and stream.done
    assert isinstance(document["usage"]["prompt_tokens"], int)
    assert len({call["id"] for call in said(tools)["tool_calls"]}) == 2 and embedded["data"]
    assert logprobs["choices"][0]["logprobs"] is None


async def test_capabilities_of_models_on_an_older_ollama_are_known_too(start: Start) -> None:
    async with start(ollama=Simulator(profile="old")) as run:
        seeing = await error_of(await run.chat(messages=picture(data_url())), 400)
        embedding = await error_of(await run.embed(model="demo"), 400)
        ignored = await run.chat(reasoning_effort="high")
        assert ignored.status == 200
        assert run.ollama.calls["/api/show"] == 1 and not run.ollama.calls["/api/embed"]
    assert seeing["code"] == embedding["code"] == "model_not_capable"


# --- images ----------------------------------------------------------------------------------------


async def test_an_image_for_a_model_without_vision_is_refused(start: Start) -> None:
    async with start() as run:
        error = await error_of(await run.chat(messages=picture(data_url())), 400)
    assert error["param"] == "messages[0].content" and error["code"] == "model_not_capable"
    assert not run.ollama.calls["/api/chat"]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        (data_url(GIF, "image/gif"), "unsupported_image"),
        (data_url(GIF, "image/png"), "unsupported_image"),
        (data_url(b"<svg/>", "image/svg+xml"), "unsupported_image"),
        ("data:image/png;base64,!!!", "invalid_base64"),
        ("data:image/png,abc", "invalid_image_url"),
        ("file:///etc/passwd", "invalid_image_url"),
        ("ftp://example.com/a.png", "invalid_image_url"),
        ("https://example.com/a.png", "image_url_not_allowed"),
        ("http://127.0.0.1/a.png", "image_url_not_allowed"),
        ("http://[::1", "invalid_image_url"),
        (data_url(PNG + b"x" * 3000), "image_too_large"),
    ],
)
async def test_an_invalid_or_unsupported_image_is_refused(start: Start, url: str, code: str) -> None:
    async with start(CHATS + "requests: {max_image_bytes: 2000}") as run:
        error = await error_of(await run.chat(model="demo-vision", messages=picture(url)), 400)
    assert error["param"].startswith("messages[0].content") and not run.ollama.calls["/api/chat"]
    assert error["code"] == code


class Gallery:
    """A web server with images; records the paths that were requested."""

    shown: Mapping[str, bytes] = {"/small.png": PNG, "/anim.gif": GIF, "/huge.png": PNG + b"x" * 5000}

    def __init__(self) -> None:
        self.visits: list[str] = []
        self.never = asyncio.Event()
        self.third = asyncio.Event()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.visits.append(request.path)
        if len(self.visits) == 3:
            self.third.set()
        match request.path:
            case "/moved.png":
                raise web.HTTPFound("/small.png")
            case "/never.png":
                await self.never.wait()
            case "/lost.png":
                await self.third.wait()
            case "/endless.png":
                return await self.endless(request)
        body = self.shown.get(request.path)
        return web.Response(body=body) if body else web.Response(status=404)

    async def endless(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(PNG * 100)


@asynccontextmanager
async def gallery() -> AsyncIterator[tuple[str, list[str]]]:
    """The server's URL, and the list of paths requested from it."""
    images = Gallery()
    runner = web.ServerRunner(web.Server(images), shutdown_timeout=1)
    await runner.setup()
    await Port(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", images.visits
    finally:
        images.never.set()
        await runner.cleanup()


def linking(url: str) -> Chat:
    return Chat(messages=(Message("system", "x"), Message("user", "what?", (Image("", url),))))


def trusting(*hosts: str) -> Images:
    return Images(Requests(image_hosts=hosts or ("127.0.0.1",), max_image_bytes=4000), allowed=lambda address: True)


async def test_an_image_of_an_allowed_host_is_fetched() -> None:
    async with gallery() as (url, visits):
        chat = linking(f"{url}/small.png")
        fetched = await trusting().fetched(chat)
    assert fetched.messages[1].images == (Image(data_url().partition(",")[2]),)
    assert fetched.messages[1].text == "what?" and visits == ["/small.png"]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/moved.png", "image_not_fetched"),
        ("/missing.png", "image_not_fetched"),
        ("/huge.png", "image_too_large"),
        ("/endless.png", "image_too_large"),
        ("/anim.gif", "unsupported_image"),
    ],
)
async def test_an_image_from_an_allowed_host_is_checked(path: str, code: str) -> None:
    async with gallery() as (url, visits):
        with pytest.raises(BadCall) as caught:
            await trusting().fetched(linking(url + path))
    assert caught.value.code == code and caught.value.param == "messages[1].content"
    assert visits == [path], "a redirect is not followed"


async def test_one_failed_image_cancels_the_fetching_of_the_others() -> None:
    async with gallery() as (url, _):
        images = tuple(Image("", f"{url}/{name}.png") for name in ("small", "never", "lost"))
        async with asyncio.timeout(10):
            with pytest.raises(BadCall) as caught:
                await trusting().fetched(Chat(messages=(Message("user", "x", images),)))
        still_running = [task for task in asyncio.all_tasks() if "Images.get" in repr(task)]
        if still_running:
            await asyncio.wait(still_running)
    assert caught.value.code == "image_not_fetched"
    assert not still_running, "a finished call must not fetch anything"


async def test_an_image_linked_twice_is_filled_in_at_both_places() -> None:
    async with gallery() as (url, _):
        image = Image("", f"{url}/small.png")
        inline = Image("inline")
        fetched = await trusting().fetched(Chat(messages=(Message("user", "x", (image, inline, image)),)))
    first, second, third = fetched.messages[0].images
    assert first == third == Image(data_url().partition(",")[2]) and second == inline


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_private_address_is_refused_even_if_its_host_is_allowed(start: Start, host: str) -> None:
    async with gallery() as (url, visits), start(CHATS + f"requests: {{image_hosts: ['{host}']}}") as run:
        link = f"{url.replace('127.0.0.1', host)}/small.png"
        error = await error_of(await run.chat(model="demo-vision", messages=picture(link)), 400)
        assert not visits and not run.ollama.calls["/api/chat"]
    assert error["code"] in ("image_url_not_allowed", "image_not_fetched") and error["param"] == "messages[0].content"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "fe80::1", "fd00::1",
        "ff02::1", "::ffff:10.0.0.1",
        "::127.0.0.1",  # IPv4-compatible
        "64:ff9b::7f00:1",  # NAT64 of 127.0.0.1
        "2002:7f00:1::",  # 6to4 of 127.0.0.1
        "fec0::1",  # site-local
    ],
)  # fmt: skip
def test_a_private_address_is_recognised_in_every_notation(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_a_public_address_is_recognised(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "link",
    ["http://user:pass@127.0.0.1/a.png", "http://127.0.0.1.evil.example/a.png", "http://evil.example/127.0.0.1"],
)
async def test_a_link_that_only_looks_like_an_allowed_host_is_refused(link: str) -> None:
    with pytest.raises(BadCall) as caught:
        await trusting().fetched(linking(link))
    assert caught.value.code == "image_url_not_allowed"
