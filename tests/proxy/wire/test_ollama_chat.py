"""Requests to Ollama, and the emulation of what it cannot do."""

from __future__ import annotations

import orjson
import pytest

from proxy.models import ModelInfo
from proxy.types import JSON, Chat, Image, Message, ToolCall
from proxy.wire import ollama_chat
from proxy.wire.ollama_chat import Pins

from .asks import HI, WEATHER, asked, data_url, named, picture, plan, sent, tool, user, words

PLAIN = ModelInfo("m", capabilities=frozenset({"completion"}))
THINKER = ModelInfo("m", capabilities=frozenset({"completion", "thinking"}))
SCHEMA_FORMAT = {"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER}}


def offered(body: JSON) -> list[str]:
    return [one["function"]["name"] for one in body.get("tools", [])]


# --- messages ----------------------------------------------------------------------------------------


def test_text_and_images_are_one_message_with_plain_base64() -> None:
    body = sent(messages=user([words("what?"), picture(), words("and why?")]))
    assert body["messages"] == [
        {"role": "user", "content": "what?\nand why?", "images": [data_url(b"\x89PNG\r\n\x1a\n and so on")[22:]]}
    ]


def test_calls_are_sent_with_object_arguments_and_their_answers_with_the_functions_name() -> None:
    turns: JSON = [
        *HI,
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"b": 1, "a": {"x": []}}'}},
                {"id": "c2", "type": "function", "function": {"name": "g", "arguments": ""}},
            ],
        },
        {"role": "tool", "tool_call_id": "c2", "content": "two"},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
    ]
    _, assistant, second, first = sent(messages=turns)["messages"]
    assert assistant == {
        "role": "assistant",
        "content": "",
        "thinking": "hm",
        "tool_calls": [
            {"id": "c1", "function": {"name": "f", "arguments": {"b": 1, "a": {"x": []}}}},
            {"id": "c2", "function": {"name": "g", "arguments": {}}},
        ],
    }
    assert list(assistant["tool_calls"][0]["function"]["arguments"]) == ["b", "a"]
    assert (second["tool_name"], first["tool_name"]) == ("g", "f")
    assert first == {"role": "tool", "content": "one", "tool_call_id": "c1", "tool_name": "f"}


def test_several_assistant_messages_at_the_end_are_joined_and_reported() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns: JSON = [
        {"role": "assistant", "content": "Welcome."},
        {"role": "assistant", "content": "I am Alice."},
        *HI,
        {"role": "assistant", "content": "Bob is better.", "reasoning_content": "hm"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "assistant", "content": "I am Bob."},
    ]
    made = plan(messages=turns)
    *before, last = orjson.loads(orjson.dumps(made.body))["messages"]
    assert [one["content"] for one in before] == ["Welcome.", "I am Alice.", "hi"]
    assert last == {
        "role": "assistant",
        "content": "Bob is better.\n\nI am Bob.",
        "thinking": "hm",
        "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": {}}}],
    }
    assert made.notes == {"messages": "changed"}


def test_a_single_assistant_message_at_the_end_stays_unchanged() -> None:
    made = plan(messages=[*HI, {"role": "assistant", "content": "It is"}])
    assert made.body["messages"][-1] == {"role": "assistant", "content": "It is"}
    assert not made.notes


def test_a_participants_name_is_ignored_and_reported() -> None:
    made = plan(messages=[{"role": "user", "content": "hi", "name": "ann"}])
    assert made.notes == {"messages.name": "ignored"}
    assert made.body["messages"] == HI


# --- tools -------------------------------------------------------------------------------------------


def test_tools_are_sent_unchanged_by_default() -> None:
    body = sent(tools=[tool("a", description="does a"), tool("b")], tool_choice="auto")
    assert offered(body) == ["a", "b"] and "format" not in body
    assert body["tools"][0] == {
        "type": "function",
        "function": {"name": "a", "description": "does a", "parameters": WEATHER},
    }


def test_a_schemas_top_level_keywords_go_into_the_functions_description() -> None:
    parameters = {**WEATHER, "description": "a place", "minProperties": 1}
    function = sent(tools=[tool(description="Weather.", parameters=parameters)])["tools"][0]["function"]
    assert function["description"] == "Weather. a place (minProperties: 1)"
    assert "description" not in function["parameters"]


def test_a_description_that_the_function_already_has_is_not_repeated() -> None:
    parameters = {**WEATHER, "description": "Weather"}
    assert (
        sent(tools=[tool(description="Weather.", parameters=parameters)])["tools"][0]["function"]["description"]
        == "Weather."
    )


def test_a_tool_without_parameters_has_properties_all_the_same() -> None:
    made = sent(tools=[{"type": "function", "function": {"name": "now"}}])
    assert made["tools"][0]["function"]["parameters"] == {"type": "object", "properties": {}}


def test_no_tools_are_shown_when_none_may_be_called() -> None:
    made = plan(tools=[tool()], tool_choice="none")
    assert "tools" not in made.body and not made.forced
    assert made.notes == {"tool_choice": "emulated"}


def test_allowed_tools_restrict_what_is_shown() -> None:
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named("b")]}}
    made = plan(tools=[tool("a"), tool("b")], tool_choice=allowed)
    assert offered(made.body) == ["b"] and made.notes == {"tool_choice": "emulated"}


def test_a_required_tool_call_is_forced_by_a_schema_and_described_in_the_prompt() -> None:
    made = plan(tools=[tool("a"), tool("b")], tool_choice="required")
    assert [one.name for one in made.forced] == ["a", "b"] and "tools" not in made.body
    shapes = made.body["format"]["anyOf"]
    assert [shape["properties"]["name"] for shape in shapes] == [{"const": "a"}, {"const": "b"}]
    assert all(shape["properties"]["arguments"] == WEATHER for shape in shapes)
    assert "Call exactly one" in made.body["messages"][0]["content"]
    assert made.notes == {"tool_choice": "emulated"}


def test_a_named_tool_is_the_only_one_that_is_forced() -> None:
    made = plan(tools=[tool("a"), tool("b")], tool_choice=named("b"))
    assert [one.name for one in made.forced] == ["b"]
    assert made.body["format"]["properties"]["name"] == {"const": "b"}


def resolved(root: JSON, ref: str) -> JSON:
    for step in ref.split("/")[1:]:
        root = root[step]
    return root


@pytest.mark.parametrize("keyword", ["$defs", "definitions"])
def test_references_of_forced_tools_refer_to_their_own_definitions(keyword: str) -> None:
    """Two tools may use the same name for different definitions."""

    def item(kind: str) -> JSON:
        return {"properties": {"x": {"$ref": f"#/{keyword}/Item"}}, keyword: {"Item": {"type": kind}}}

    made = plan(
        tools=[tool("a", parameters=item("string")), tool("b", parameters=item("integer"))], tool_choice="required"
    )
    root = orjson.loads(orjson.dumps(made.body["format"]))
    kinds = []
    for shape in root["anyOf"]:
        arguments = resolved(root, shape["properties"]["arguments"]["$ref"])
        kinds.append(resolved(root, arguments["properties"]["x"]["$ref"])["type"])
    assert kinds == ["string", "integer"]


def test_a_forced_tools_schema_can_be_recursive() -> None:
    tree = {"type": "object", "properties": {"child": {"$ref": "#"}}}
    root = plan(tools=[tool(parameters=tree)], tool_choice="required").body["format"]
    arguments = resolved(root, root["properties"]["arguments"]["$ref"])
    assert resolved(root, arguments["properties"]["child"]["$ref"]) == arguments


@pytest.mark.parametrize("definitions", [5, [1], "x", None])
def test_unusual_definitions_of_a_forced_tool_do_no_harm(definitions: JSON) -> None:
    assert plan(tools=[tool(parameters={"$defs": definitions})], tool_choice="required").forced


def test_one_call_at_a_time_is_emulated() -> None:
    made = plan(tools=[tool()], parallel_tool_calls=False)
    assert made.one_call and made.notes == {"parallel_tool_calls": "emulated"}
    assert not plan(tools=[tool()]).one_call


def test_strict_tools_are_checked_later() -> None:
    made = plan(tools=[tool("a", strict=True), tool("b", strict=False), tool("c")])
    assert made.strict_tools == {"a": WEATHER}


# --- formats -----------------------------------------------------------------------------------------


def test_a_format_is_described_in_the_system_message_or_else_at_the_end() -> None:
    system = {"role": "system", "content": "be kind"}
    turns = [system, *HI, {"role": "assistant", "content": "yes?"}, {"role": "user", "content": "go"}]
    first, *rest = sent(messages=turns, response_format={"type": "json_object"})["messages"]
    assert first["content"].startswith("be kind\n\nAnswer with one JSON object") and rest == turns[1:]
    *rest, last = sent(messages=turns[1:], response_format={"type": "json_object"})["messages"]
    assert last["content"].startswith("go\n\nAnswer with one JSON object") and rest == turns[1:3]


def test_a_format_is_described_even_without_messages() -> None:
    said = [{"role": "assistant", "content": "well"}]
    made = sent(messages=said, response_format={"type": "json_object"})["messages"]
    assert made[0] == said[0] and made[1]["role"] == "user"


def test_an_answer_is_checked_as_far_as_the_format_says() -> None:
    strict, loose = plan(response_format=SCHEMA_FORMAT), plan(response_format={"type": "json_object"})
    assert (strict.json, strict.schema) == (True, WEATHER)
    assert (loose.json, loose.schema) == (True, None)
    assert (plan().json, plan().schema) == (False, None)


def test_a_forced_tool_call_takes_precedence_over_a_format() -> None:
    made = plan(tools=[tool()], tool_choice="required", response_format=SCHEMA_FORMAT)
    assert made.forced and not made.json and made.schema is None


# --- thinking and pins -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "effort", "think", "notes"),
    [
        (None, "high", "high", {}),
        (THINKER, "high", "high", {}),
        (THINKER, "none", False, {}),
        (PLAIN, "none", None, {}),
        (PLAIN, "high", None, {"reasoning_effort": "ignored"}),
    ],
)
def test_think_is_sent_to_models_that_can_think(info: ModelInfo | None, effort: str, think: JSON, notes: JSON) -> None:
    made = plan(info, reasoning_effort=effort)
    assert (made.body.get("think"), made.notes) == (think, notes)


def test_the_operators_load_time_options_are_the_same_on_every_call() -> None:
    pins = Pins({"num_ctx": 8192}, shift=True, keep_alive="1h")
    chat = ollama_chat.plan("m", asked(temperature=0).chat(), False, pins, None).body
    load, embed = ollama_chat.load_body("m", pins), ollama_chat.embed_body("m", ("hi",), 8, pins)
    assert chat["options"] == {"temperature": 0.0, "num_ctx": 8192}
    assert load == {
        "model": "m",
        "messages": [],
        "stream": False,
        "shift": True,
        "options": {"num_ctx": 8192},
        "keep_alive": "1h",
    }
    assert embed == {
        "model": "m",
        "input": ("hi",),
        "truncate": False,
        "dimensions": 8,
        "options": {"num_ctx": 8192},
        "keep_alive": "1h",
    }
    assert chat["shift"] == load["shift"] and chat["truncate"] is False


def test_without_configured_options_none_are_sent() -> None:
    assert ollama_chat.load_body("m", Pins()) == {"model": "m", "messages": [], "stream": False, "shift": False}
    assert ollama_chat.embed_body("m", (), None, Pins()) == {"model": "m", "input": (), "truncate": False}


def test_internally_built_chats_are_translated_the_same_way() -> None:
    turn = Message("assistant", "x", (Image("AAAA"),), tool_calls=(ToolCall("1", "f", "{}"),))
    chat = Chat(messages=(turn, Message("tool", "y", tool_call_id="2")))
    first, second = ollama_chat.plan("m", chat, True, Pins(), None).body["messages"]
    assert first["images"] == ["AAAA"] and second["tool_name"] == ""
