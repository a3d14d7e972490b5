"""Every field of OpenAI's chat request is honoured, emulated, carried, ignored with a note, or refused by name."""

from __future__ import annotations

import typing

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from proxy.errors import BadCall
from proxy.types import JSON, Format, ToolChoice
from proxy.wire.openai_chat import FIELDS, read_chat

from .asks import HI, LIMITS, WEATHER, asked, named, nested, refused, sent, tool


def test_every_field_that_the_openai_sdk_can_send_is_a_row() -> None:
    sendable = {*typing.get_type_hints(CompletionCreateParamsBase), "stream"}
    assert sendable <= set(FIELDS)


def test_every_row_describes_the_handling_of_its_field() -> None:
    assert all(field.says.endswith(".") for field in FIELDS.values())


def test_a_plain_request_has_no_other_fields() -> None:
    assert sent() == {"model": "m", "stream": False, "truncate": False, "shift": False, "messages": HI}


def test_a_null_is_the_same_as_an_absent_field() -> None:
    assert sent(**{name: None for name in FIELDS if name not in ("model", "messages")}) == sent()


# --- sampling ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "option", "given"),
    [
        ("max_tokens", 5, "num_predict", 5),
        ("max_completion_tokens", 5, "num_predict", 5),
        ("max_completion_tokens", 5.0, "num_predict", 5),
        ("temperature", 0, "temperature", 0.0),
        ("temperature", 1.5, "temperature", 1.5),
        ("top_p", 0.5, "top_p", 0.5),
        ("presence_penalty", -2, "presence_penalty", -2.0),
        ("frequency_penalty", 0, "frequency_penalty", 0.0),
        ("seed", 0, "seed", 0),
        ("seed", -(2**63), "seed", -(2**63)),
        ("stop", "END", "stop", ["END"]),
        ("stop", ["a", "b"], "stop", ["a", "b"]),
    ],
)
def test_a_sampling_field_becomes_ollamas_option(field: str, value: JSON, option: str, given: JSON) -> None:
    assert sent(**{field: value})["options"] == {option: given}


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("max_tokens", 0, "below_minimum_value"),
        ("max_tokens", 2**31, "above_maximum_value"),
        ("max_tokens", 1.5, "invalid_type"),
        ("max_completion_tokens", "5", "invalid_type"),
        ("temperature", 2.1, "above_maximum_value"),
        ("temperature", True, "invalid_type"),
        ("top_p", -0.1, "below_minimum_value"),
        ("presence_penalty", 3, "above_maximum_value"),
        ("frequency_penalty", [], "invalid_type"),
        ("seed", 2**63, "above_maximum_value"),
        ("stop", "", "empty_string"),
        ("stop", ["a", 1], "invalid_type"),
        ("stop", {}, "invalid_type"),
        ("stop", ["a"] * 65, "array_above_max_length"),
        ("messages", [{"role": "user", "content": "hi"}] * 10_001, "array_above_max_length"),
        ("n", 0, "below_minimum_value"),
        ("n", 9, "above_maximum_value"),
        ("stream", 1, "invalid_type"),
        ("logprobs", 5, "invalid_type"),
        ("top_logprobs", 21, "above_maximum_value"),
        ("reasoning_effort", "extreme", "invalid_value"),
        ("service_tier", 1, "invalid_type"),
        ("store", "yes", "invalid_type"),
        ("model", "", "empty_string"),
        ("model", 5, "invalid_type"),
    ],
)
def test_an_invalid_value_is_refused_naming_its_field(field: str, value: JSON, code: str) -> None:
    error = refused(**{field: value})
    assert (error.status, error.param, error.code) == (400, field, code)
    assert f"'{field}'" in str(error)


@pytest.mark.parametrize("body", [{"model": "m"}, {"messages": HI}, {"model": "m", "messages": None}])
def test_a_request_without_model_or_messages_is_refused(body: JSON) -> None:
    with pytest.raises(BadCall) as caught:
        read_chat(body, LIMITS)
    assert caught.value.code == "missing_required_parameter"
    assert caught.value.param == ("messages" if "model" in body else "model")


@pytest.mark.parametrize("body", [None, [], "hi", 5, True])
def test_a_body_other_than_an_object_is_refused(body: JSON) -> None:
    with pytest.raises(BadCall, match="must be a JSON object"):
        read_chat(body, LIMITS)


@pytest.mark.parametrize(
    "twins",
    [
        {"max_tokens": 5, "max_completion_tokens": 6},
        {"tools": [tool()], "functions": [{"name": "weather"}]},
        {"functions": [{"name": "weather"}], "tools": [tool()]},
        {"tools": [tool()], "tool_choice": "none", "function_call": "auto"},
    ],
)
def test_conflicting_synonyms_are_refused(twins: dict[str, JSON]) -> None:
    error = refused(**twins)
    assert error.code == "invalid_parameter_combination"
    assert error.param in twins


def test_synonyms_with_equal_values_are_accepted() -> None:
    assert sent(max_tokens=5, max_completion_tokens=5)["options"] == {"num_predict": 5}


# --- n, logprobs, streams ----------------------------------------------------------------------------


def test_several_choices_are_emulated_and_reported() -> None:
    assert (asked(n=3).chat().n, asked(n=3).notes) == (3, {"n": "emulated"})
    assert not asked(n=1).notes


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ({"logprobs": True}, {"logprobs": True, "top_logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"logprobs": False, "top_logprobs": 0}, {}),
    ],
)
def test_logprobs(fields: dict[str, JSON], body: JSON) -> None:
    found = sent(**fields)
    assert {name: found[name] for name in ("logprobs", "top_logprobs") if name in found} == body


def test_top_logprobs_without_logprobs_is_refused() -> None:
    assert refused(top_logprobs=2).param == "top_logprobs"


def test_stream_options_are_read_and_unknown_ones_reported() -> None:
    one = asked(stream=True, stream_options={"include_usage": True, "include_obfuscation": False})
    assert one.stream and one.include_usage
    assert one.notes == {"stream_options.include_obfuscation": "ignored"}
    assert refused(stream_options={"include_usage": 1}).param == "stream_options.include_usage"


# --- formats -----------------------------------------------------------------------------------------


def test_json_object_becomes_ollamas_json_and_is_described_in_the_prompt() -> None:
    body = sent(response_format={"type": "json_object"})
    assert body["format"] == "json"
    assert "JSON object" in body["messages"][0]["content"]


def test_a_json_schema_becomes_ollamas_format_and_is_shown_to_the_model() -> None:
    body = sent(response_format={"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER}})
    assert body["format"] == WEATHER
    assert '"required":["city"]' in body["messages"][0]["content"]


@pytest.mark.parametrize("name", ["schema", "value"])
def test_json_object_can_have_a_schema(name: str) -> None:
    assert asked(response_format={"type": "json_object", name: WEATHER}).format == Format(WEATHER)
    without = asked(response_format={"type": "json_object", name: None})
    assert without.format == Format() and not without.notes


def test_other_fields_of_a_response_format_are_reported() -> None:
    given = {"type": "json_object", "schema": WEATHER, "grammar": "x"}
    assert asked(response_format=given).notes["response_format.grammar"] == "ignored"
    assert asked(response_format={"type": "text", "schema": WEATHER}).notes["response_format.schema"] == "ignored"


def test_the_description_of_a_response_format_is_shown_to_the_model() -> None:
    given = {"name": "w", "description": "the town's weather", "schema": WEATHER}
    body = sent(response_format={"type": "json_schema", "json_schema": given})
    assert "the town's weather" in body["messages"][0]["content"]


@pytest.mark.parametrize(("strict", "checked"), [(True, True), (False, False), (None, True)])
def test_a_json_schema_is_checked_unless_strict_is_false(strict: JSON, checked: bool) -> None:
    given = {"name": "w", "schema": WEATHER, "strict": strict}
    assert asked(response_format={"type": "json_schema", "json_schema": given}).format == Format(WEATHER, checked)


def test_the_format_text_is_no_format() -> None:
    assert sent(response_format={"type": "text"}) == sent()


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ({}, "response_format.type"),
        ({"type": "grammar"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_object", "schema": []}, "response_format.schema"),
        ({"type": "json_object", "value": nested(65)}, "response_format.value"),
        ({"type": "json_schema", "json_schema": {"schema": []}}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"schema": False}}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"schema": nested(65)}}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "strict": 1}}, "response_format.json_schema.strict"),
        ("json", "response_format"),
    ],
)
def test_an_invalid_format_is_refused_naming_its_field(value: JSON, param: str) -> None:
    assert refused(response_format=value).param == param


# --- tools -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "read"),
    [
        ("none", ToolChoice("none")),
        ("auto", ToolChoice("auto")),
        ("required", ToolChoice("required")),
        (named("a"), ToolChoice("required", ("a",))),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named("a"), named("b")]}},
            ToolChoice("auto", ("a", "b")),
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named("b")]}},
            ToolChoice("required", ("b",)),
        ),
    ],
)
def test_tool_choice(choice: JSON, read: ToolChoice) -> None:
    assert asked(tools=[tool("a"), tool("b")], tool_choice=choice).tool_choice == read


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ("any", "tool_choice"),
        (5, "tool_choice"),
        ({"type": "custom", "custom": {"name": "a"}}, "tool_choice.type"),
        ({"type": "function"}, "tool_choice.function"),
        ({"type": "function", "function": {"name": ""}}, "tool_choice.function.name"),
        (named("c"), "tool_choice"),
        ({"type": "allowed_tools"}, "tool_choice.allowed_tools"),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
            "tool_choice.allowed_tools.tools",
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": [named("a")]}},
            "tool_choice.allowed_tools.mode",
        ),
    ],
)
def test_an_invalid_tool_choice_is_refused_naming_its_field(choice: JSON, param: str) -> None:
    assert refused(tools=[tool("a")], tool_choice=choice).param == param


def test_a_tool_cannot_be_required_without_tools() -> None:
    assert refused(tool_choice="required").param == "tool_choice"
    assert refused(function_call={"name": "a"}).param == "function_call"


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ({}, "tools"),
        ([5], "tools[0]"),
        ([tool(), {"type": "custom", "custom": {"name": "a"}}], "tools[1].type"),
        ([{"type": "function"}], "tools[0].function"),
        ([{"type": "function", "function": {}}], "tools[0].function.name"),
        ([tool(parameters=[])], "tools[0].function.parameters"),
        ([tool(parameters=nested(65))], "tools[0].function.parameters"),
        ([tool(strict="yes")], "tools[0].function.strict"),
        ([tool(description=5)], "tools[0].function.description"),
    ],
)
def test_an_invalid_tool_is_refused_naming_its_field(tools: JSON, param: str) -> None:
    assert refused(tools=tools).param == param


def test_an_equal_duplicate_tool_is_dropped_and_a_different_one_refused() -> None:
    same, other = tool(description="one"), tool(description="other")
    assert [one.description for one in asked(tools=[same, same]).tools] == ["one"]
    wrong = refused(tools=[same, other])
    assert (wrong.param, wrong.code) == ("tools[1].function.name", "duplicate_tool")
    assert refused(functions=[same["function"], other["function"]]).param == "functions[1].name"


def test_deprecated_functions_are_tools_called_one_at_a_time() -> None:
    one = asked(functions=[{"name": "weather", "parameters": WEATHER}], function_call={"name": "weather"})
    assert one.legacy_functions and one.tools[0].name == "weather"
    assert one.tool_choice == ToolChoice("required", ("weather",))
    assert not one.chat().parallel_tool_calls


@pytest.mark.parametrize("first", ["functions", "parallel_tool_calls"])
def test_deprecated_functions_are_never_called_in_parallel(first: str) -> None:
    fields: dict[str, JSON] = {"functions": [{"name": "weather"}], "parallel_tool_calls": True}
    ordered = {first: fields.pop(first), **fields}
    assert not asked(**ordered).chat().parallel_tool_calls


@pytest.mark.parametrize(("choice", "mode"), [("none", "none"), ("auto", "auto")])
def test_function_call_is_read_as_tool_choice(choice: str, mode: str) -> None:
    assert asked(functions=[{"name": "a"}], function_call=choice).tool_choice.mode == mode


def test_an_invalid_function_is_refused_naming_its_field() -> None:
    assert refused(functions=[{}]).param == "functions[0].name"
    assert refused(functions=[{"name": "a"}], function_call={"name": "b"}).param == "function_call"
    assert refused(functions=[{"name": "a"}], function_call="required").param == "function_call"


# --- thinking ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effort", "think", "notes"),
    [
        ("none", False, {}),
        ("minimal", "low", {"reasoning_effort": "changed"}),
        ("low", "low", {}),
        ("medium", "medium", {}),
        ("high", "high", {}),
        ("xhigh", "max", {"reasoning_effort": "changed"}),
        ("max", "max", {}),
    ],
)
def test_reasoning_effort_becomes_think(effort: str, think: JSON, notes: JSON) -> None:
    assert sent(reasoning_effort=effort)["think"] == think
    assert asked(reasoning_effort=effort).notes == notes


# --- Ollama's own options ----------------------------------------------------------------------------


def test_ollamas_sampling_options_are_honoured() -> None:
    options = {"top_k": 5, "min_p": 0.1, "num_predict": 9, "repeat_penalty": 1.1, "repeat_last_n": -1, "stop": "x"}
    assert sent(options=options)["options"] == {**options, "stop": ["x"]}


def test_load_time_options_and_keep_alive_are_ignored_and_reported() -> None:
    one = asked(options={"num_ctx": 9, "num_gpu": 1, "mirostat": 1, "top_k": None}, keep_alive=0)
    assert not one.chat().options
    assert one.notes == {
        "options.num_ctx": "ignored",
        "options.num_gpu": "ignored",
        "options.mirostat": "ignored",
        "keep_alive": "ignored",
    }


@pytest.mark.parametrize("first", ["temperature", "options"])
def test_openais_field_takes_precedence_over_ollamas_option_which_is_reported(first: str) -> None:
    fields: dict[str, JSON] = {"temperature": 0.5, "options": {"temperature": 1, "top_k": 3}}
    one = asked(**{first: fields.pop(first), **fields})
    assert one.chat().options == {"temperature": 0.5, "top_k": 3}
    assert one.notes == {"options.temperature": "ignored"}


def test_an_invalid_option_is_refused_naming_its_field() -> None:
    assert refused(options={"top_k": "many"}).param == "options.top_k"
    assert refused(options=[]).param == "options"


# --- carried, ignored, refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user", "u-1"),
        ("metadata", {"a": "b"}),
        ("store", True),
        ("service_tier", "flex"),
        ("safety_identifier", "s"),
        ("prompt_cache_key", "k"),
        ("prompt_cache_options", {"mode": "explicit"}),
        ("prompt_cache_retention", "24h"),
    ],
)
def test_fields_for_the_caller_only_are_carried_along(field: str, value: JSON) -> None:
    one = asked(**{field: value})
    assert one.about == {field: value} and not one.notes
    assert sent(**{field: value}) == sent()


def test_metadata_is_a_limited_number_of_string_pairs() -> None:
    assert refused(metadata={"a": 1}).param == "metadata.a"
    assert refused(metadata={str(index): "" for index in range(17)}).param == "metadata"


@pytest.mark.parametrize("field", ["verbosity", "keep_alive", "something_new"])
def test_fields_without_effect_are_reported(field: str) -> None:
    assert asked(**{field: "low"}).notes == {field: "ignored"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logit_bias", {"50256": -100}),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("audio", ["text"]),
        ("modalities", ["text", "audio"]),
        ("moderation", {"model": "m"}),
        ("prediction", {"type": "content", "content": "x"}),
        ("web_search_options", {}),
        ("web_search_options", {"search_context_size": "low"}),
    ],
)
def test_fields_that_no_local_model_supports_are_refused_by_name(field: str, value: JSON) -> None:
    error = refused(**{field: value})
    assert (error.status, error.param, error.code) == (400, field, "unsupported_parameter")


@pytest.mark.parametrize(("field", "value"), [("modalities", ["text"]), ("modalities", []), ("logit_bias", {})])
def test_unsupported_fields_with_neutral_values_are_accepted(field: str, value: JSON) -> None:
    assert sent(**{field: value}) == sent()


def test_fields_that_a_plugin_declares_are_passed_to_it() -> None:
    body = {"model": "m", "messages": HI, "retrieve": {"top": 3}, "logit_bias": {"1": 2}, "cache": None}
    one = read_chat(body, LIMITS, theirs={"retrieve", "logit_bias", "cache"})
    assert one.extra == {"retrieve": {"top": 3}, "logit_bias": {"1": 2}, "cache": None}
    assert not one.notes and not one.about


def test_a_plugins_field_has_a_depth_limit_too() -> None:
    with pytest.raises(BadCall, match="nested more than 64") as caught:
        read_chat({"model": "m", "messages": HI, "retrieve": nested(65)}, LIMITS, theirs={"retrieve"})
    assert caught.value.param == "retrieve"


def test_the_question_is_the_users_last_message() -> None:
    turns = [*HI, {"role": "assistant", "content": "yes?"}, {"role": "user", "content": "why"}]
    turns += [{"role": "assistant", "content": "so"}, {"role": "system", "content": "be kind"}]
    assert asked(messages=turns).chat().question == "why"
    assert asked(messages=turns[-1:]).chat().question == ""
