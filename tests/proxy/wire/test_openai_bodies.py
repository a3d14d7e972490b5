"""Requests to an OpenAI-compatible server."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter

from proxy.errors import BadCall
from proxy.types import JSON, Chat, Complete, Format, Image, Message, Tool, ToolCall, ToolChoice
from proxy.wire.openai_bodies import Plan, embed_body, plan
from tests.proxy.wire.asks import JPEG, PNG, WEATHER, WEBP, asked, named, tool, user

EVERY = ("top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "num_keep")
HI = (Message("user", "hi"),)
CLOSED: JSON = {**WEATHER, "additionalProperties": False}


def planned(ask: Chat | Complete, stream: bool = False, extras: tuple[str, ...] = ()) -> Plan:
    return plan("m", ask, stream, extras)


def body(ask: Chat | Complete, **more: Any) -> JSON:
    """The JSON that is sent."""
    return orjson.loads(orjson.dumps(planned(ask, **more).body))


def sent(**fields: JSON) -> JSON:
    """The JSON that is sent for a client's request `hi` with these fields added."""
    return body(asked(**fields).chat())


def notes(**fields: JSON) -> dict[str, str]:
    return planned(asked(**fields).chat()).notes


def test_only_the_callers_fields_are_sent() -> None:
    assert sent() == {"model": "m", "stream": False, "messages": [{"role": "user", "content": "hi"}]}


def test_usage_of_a_stream_is_requested() -> None:
    assert body(Chat(HI), stream=True)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.5, "top_p": 0.9, "seed": 7, "presence_penalty": 1.0, "frequency_penalty": -1.0},
        {"stop": ["a", "b"]},
        {"logprobs": True, "top_logprobs": 3},
        {"tools": [tool(strict=True, description="Of a city.")]},
        {"tools": [tool()], "tool_choice": "required"},
        {"tools": [tool()], "tool_choice": "none"},
        {"tools": [tool()], "parallel_tool_calls": False},
        {"reasoning_effort": "high"},
        {"reasoning_effort": "none"},
    ],
)
def test_fields_that_such_servers_know_are_forwarded_without_notes(fields: dict[str, JSON]) -> None:
    told = sent(**fields)
    assert {name: told[name] for name in fields} == fields
    assert set(told) == {"model", "stream", "messages", *fields}
    assert notes(**fields) == {}


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ({"max_tokens": 5}, {"max_completion_tokens": 5}),
        ({"max_completion_tokens": 5}, {"max_completion_tokens": 5}),
        ({"logprobs": True}, {"logprobs": True}),
        ({"tools": [tool()], "tool_choice": "auto"}, {"tools": [tool()]}),
        (
            {"tools": [tool(), tool("clock")], "tool_choice": named("clock")},
            {"tools": [tool("clock")], "tool_choice": "required"},
        ),
        ({"parallel_tool_calls": False}, {}),
        ({"user": "alice", "metadata": {"a": "b"}, "store": True, "prompt_cache_key": "k"}, {}),
    ],
)
def test_fields_that_are_translated_or_dropped(fields: dict[str, JSON], more: JSON) -> None:
    assert sent(**fields) == {**sent(), **more}
    assert notes(**fields) == {}


@pytest.mark.parametrize(
    ("think", "said", "note"),
    [(True, None, None), (False, "none", None), ("low", "low", None), ("max", "high", "changed")],
)
def test_think_becomes_reasoning_effort(think: Any, said: str | None, note: str | None) -> None:
    made = planned(Chat(HI, think=think))
    assert (made.body.get("reasoning_effort"), made.notes.get("reasoning_effort")) == (said, note)


def test_ollamas_options_are_sent_only_to_servers_configured_for_them() -> None:
    options = {"top_k": 4, "min_p": 0.1, "typical_p": 0.9, "repeat_penalty": 1.1, "repeat_last_n": 8, "num_keep": 2}
    made = planned(Chat(HI, options=options), extras=EVERY)
    renamed = {"repetition_penalty": 1.1, "n_keep": 2}
    assert made.notes == {}
    assert made.body.items() >= ({**options, **renamed}.items() - {("num_keep", 2)})
    none = planned(Chat(HI, options=options), extras=("top_k",))
    assert none.notes == {f"options.{name}": "ignored" for name in options if name != "top_k"}
    assert none.body["top_k"] == 4 and "min_p" not in none.body


# --- messages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("picture", "kind"), [(PNG, "png"), (JPEG, "jpeg"), (WEBP, "webp")])
def test_images_become_data_urls_of_their_type(picture: bytes, kind: str) -> None:
    encoded = base64.b64encode(picture).decode()
    said = body(Chat((Message("user", "see", (Image(encoded),)),)))["messages"][0]["content"]
    url = {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{encoded}"}}
    assert said == [{"type": "text", "text": "see"}, url]
    assert body(Chat((Message("user", "", (Image(encoded),)),)))["messages"][0]["content"] == [url]


def test_a_conversation_with_tools_is_sent_unchanged() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bonn"}'}}
    turns: JSON = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Rain?", "name": "eve"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "no", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "No."},
    ]
    assert sent(messages=turns)["messages"] == turns


def test_images_from_functions_follow_all_outputs_in_a_user_message() -> None:
    image = Image(base64.b64encode(PNG).decode())
    calls = tuple(ToolCall(id, "f", "{}") for id in ("a", "b"))
    outputs = (Message("tool", "", (image,), tool_call_id="a"), Message("tool", "two", (image,), tool_call_id="b"))
    said = body(Chat((*HI, Message("assistant", tool_calls=calls), *outputs, *HI)))["messages"]
    assert [one["role"] for one in said] == ["user", "assistant", "tool", "tool", "user", "user"]
    assert [one["content"] for one in said[2:4]] == ["", "two"]
    assert [part["type"] for part in said[4]["content"]] == ["image_url", "image_url"]
    assert body(Chat((*HI, Message("assistant", tool_calls=calls), *outputs)))["messages"] == said[:-1]


def test_earlier_reasoning_is_dropped_and_reported() -> None:
    turns = [*user("hi"), {"role": "assistant", "content": "a", "reasoning_content": "hm"}, *user("so?")]
    assert sent(messages=turns)["messages"][1] == {"role": "assistant", "content": "a"}
    assert notes(messages=turns) == {"messages.thinking": "ignored"}


def test_results_without_an_id_belong_to_the_call_with_their_name() -> None:
    calls = (ToolCall("a", "f", "{}"), ToolCall("b", "g", "{}"), ToolCall("c", "f", "{}"))
    results = tuple(Message("tool", "", name=name) for name in ("g", "f", "", "f"))
    said = body(Chat((*HI, Message("assistant", tool_calls=calls), *results)))["messages"]
    assert [one["tool_call_id"] for one in said if one["role"] == "tool"] == ["b", "a", "c", "call_0"]


# --- tools and formats --------------------------------------------------------------------------------


def test_allowed_tools_hide_the_others() -> None:
    allowed = {"mode": "required", "tools": [named("a"), named("b")]}
    fields: JSON = {
        "tools": [tool("a"), tool("b"), tool("c")],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": allowed},
    }
    made = planned(asked(**fields).chat())
    assert made.body["tool_choice"] == "required" and made.notes == {"tool_choice": "emulated"}
    assert [one["function"]["name"] for one in made.body["tools"]] == ["a", "b"]
    assert made.must_call == {"a", "b"}


@pytest.mark.parametrize(
    ("choice", "must"), [("auto", set()), ("none", set()), ("required", {"a", "b"}), (named("b"), {"b"})]
)
def test_a_required_tool_call_is_checked(choice: JSON, must: set[str]) -> None:
    assert set(planned(asked(tools=[tool("a"), tool("b")], tool_choice=choice).chat()).must_call) == must


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (Format(), {"type": "json_object"}),
        (Format({}), {"type": "json_object"}),
        (Format(WEATHER), {"type": "json_schema", "json_schema": {"name": "answer", "schema": WEATHER}}),
        (Format(CLOSED, False), {"type": "json_schema", "json_schema": {"name": "answer", "schema": CLOSED}}),
        (
            Format(CLOSED),
            {"type": "json_schema", "json_schema": {"name": "answer", "schema": CLOSED, "strict": True}},
        ),
        (
            Format({**CLOSED, "properties": {"city": {"anyOf": [WEATHER]}}}),
            {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": {**CLOSED, "properties": {"city": {"anyOf": [WEATHER]}}}},
            },
        ),
    ],
)
def test_a_format_is_native_and_strict_if_openai_supports_it(form: Format, said: JSON) -> None:
    made = planned(Chat(HI, format=form))
    assert made.body["response_format"] == said and made.json
    assert made.schema == (form.schema if form.strict else None)
    assert "JSON" in made.body["messages"][0]["content"], "OpenAI refuses a JSON format that no message mentions"


def test_single_calls_and_strict_tools_are_checked() -> None:
    made = planned(Chat(HI, tools=(Tool("f", parameters=WEATHER, strict=True),), parallel_tool_calls=False))
    assert made.one_call and made.strict_tools == {"f": WEATHER}


# --- completions --------------------------------------------------------------------------------------


def test_a_raw_prompt_is_a_completion() -> None:
    ask = Complete(prompts=("once",), suffix="end", options={"max_tokens": 3, "seed": 1}, logprobs=2)
    made = planned(ask)
    said = {"prompt": "once", "suffix": "end", "max_tokens": 3, "seed": 1, "logprobs": 2}
    assert (made.path, made.top, made.notes) == ("/completions", 2, {})
    assert made.body == {"model": "m", "stream": False, **said}


def test_an_answer_without_a_limit_has_none_in_the_body() -> None:
    made = planned(Complete(prompts=("once",), options={"max_tokens": None}))
    assert "max_tokens" not in made.body and made.notes == {"options.num_predict": "ignored"}
    made = planned(Complete(prompts=("once",), raw=False, options={"max_tokens": None}))
    assert "max_completion_tokens" not in made.body and made.notes == {}


def test_a_prompt_for_the_models_template_is_sent_as_a_chat() -> None:
    image = Image(base64.b64encode(PNG).decode())
    ask = Complete(prompts=("hi",), raw=False, system="s", images=(image,), think=False, options={"max_tokens": 3})
    made = planned(ask)
    assert made.path == "/chat/completions" and made.body["reasoning_effort"] == "none"
    assert made.body["max_completion_tokens"] == 3
    assert [one["role"] for one in made.body["messages"]] == ["system", "user"]
    assert made.body["messages"][1]["content"][1]["type"] == "image_url"


def test_a_prompt_with_a_suffix_is_a_completion_even_if_it_is_not_raw() -> None:
    made = planned(Complete(prompts=("a",), raw=False, suffix="b", system="s", think=True))
    assert made.path == "/completions" and made.notes == {"system": "ignored", "reasoning_effort": "ignored"}


def test_a_raw_prompt_has_no_place_for_images() -> None:
    with pytest.raises(BadCall) as caught:
        planned(Complete(prompts=("a",), images=(Image("AAAA"),)))
    assert caught.value.param == "images"


def test_logprobs_zero_requests_one_alternative_and_hides_it() -> None:
    made = planned(Complete(prompts=("a",), logprobs=0))
    assert (made.body["logprobs"], made.top) == (1, 0)


def test_embeddings_are_requested_as_floats() -> None:
    said: dict[str, JSON] = {"model": "m", "input": ("a",), "encoding_format": "float"}
    assert embed_body("m", ("a",), None) == said
    assert embed_body("m", ("a",), 8) == {**said, "dimensions": 8}


def test_a_body_has_the_fields_that_the_sdk_would_send() -> None:
    fields: JSON = {
        "tools": [tool(strict=True)],
        "tool_choice": named("weather"),
        "max_tokens": 3,
        "reasoning_effort": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": CLOSED}},
    }
    TypeAdapter(CompletionCreateParamsNonStreaming).validate_python(sent(**fields) | {"stream": False})


def test_a_default_tool_choice_is_not_sent() -> None:
    ask = Chat(HI, tools=(Tool("f"),), tool_choice=ToolChoice("auto", ("f",)))
    assert "tool_choice" not in body(ask) and planned(ask).notes == {"tool_choice": "emulated"}
