"""Requests of the Responses API: any JSON is translated for Ollama or refused with an error naming a field."""

from __future__ import annotations

from copy import deepcopy
from typing import Final

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import BadCall
from proxy.streams import Answer
from proxy.types import JSON, Event, Finish, Moment, Sources, Text, Thinking, ToolCalled, Usage
from proxy.wire import ollama_chat
from proxy.wire.openai_responses import FIELDS, read_response
from proxy.wire.openai_responses_out import Response, ResponseStyle

from .asks import LIMITS, PNG, WEATHER, data_url
from .test_any_request import ANY, PINS, PLACES, check_names_a_field, check_valid_for_ollama, mutated

THEIRS: Final = frozenset({"previous_response_id", "background", "conversation", "template", "mine"})
BODIES: Final[list[JSON]] = [
    {
        "model": "m",
        "input": [
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": [{"type": "input_text", "text": "see"},
                                         {"type": "input_image", "image_url": data_url(PNG)}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "warm"},
        ],
        "tools": [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]},
        "reasoning": {"effort": "high", "summary": "auto"}, "temperature": 0.5, "metadata": {"a": "b"},
        "include": ["message.output_text.logprobs"],
    },
    {"model": "m", "input": "hi", "text": {"format": {"type": "json_schema", "name": "w", "schema": WEATHER}},
     "previous_response_id": "resp_1", "background": True, "store": True},
    {"input": "hi", "conversation": {"id": "conv_1"}, "prompt": {"id": "p", "version": "2", "variables": {"a": "b"}},
     "instructions": "be kind", "max_output_tokens": 5, "truncation": "auto", "mine": 1},
    {"model": "m", "input": [{"type": "function_call", "call_id": "c1", "namespace": "a", "name": "b",
                              "arguments": "{}"}],
     "tools": [{"type": "namespace", "name": "a", "description": "A's", "tools": [
         {"type": "function", "name": "b", "parameters": WEATHER}]}]},
]  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> JSON:
    body = deepcopy(draw(st.sampled_from(BODIES)))
    for _ in range(draw(st.integers(0, 2))):
        body[draw(st.sampled_from(sorted({*FIELDS, "mine", "unknown"})))] = draw(ANY)
    for _ in range(draw(st.integers(0, 2))):
        mutated(body, draw(PLACES), draw(ANY))
    return body


def outcome(body: JSON) -> JSON:
    """The request to Ollama; checks that the response's head and items can be serialised."""
    asked = read_response(body, LIMITS, THEIRS)
    orjson.dumps([list(asked.notes.items()), asked.head(1), asked.items, asked.extra])
    return orjson.loads(orjson.dumps(ollama_chat.plan("m", asked.chat(), asked.stream, PINS, None).body))


@pytest.mark.parametrize("body", BODIES)
def test_the_original_requests_are_valid(body: JSON) -> None:
    assert check_valid_for_ollama(outcome(body))


@settings(max_examples=200, deadline=None)
@given(body=requests() | ANY)
def test_any_request_is_sent_to_ollama_or_refused_naming_a_field(body: JSON) -> None:
    try:
        good = check_valid_for_ollama(outcome(body))
    except BadCall as error:
        good = check_names_a_field(error, *FIELDS, *THEIRS) or not isinstance(body, dict)
    assert good


def test_fields_of_plugins_are_passed_to_them() -> None:
    asked = read_response(BODIES[2], LIMITS, THEIRS)
    assert asked.extra == {
        "conversation": "conv_1", "mine": 1, "template": {"name": "p", "version": "2", "variables": {"a": "b"}},
    }  # fmt: skip
    assert asked.model == "template:p" and [one.text for one in asked.messages] == ["be kind", "hi"]
    head = asked.head(1)
    assert head["conversation"] == {"id": "conv_1"} and head["prompt"]["version"] == "2" and head["store"]


@pytest.mark.parametrize("template", [{"name": "p"}, "p"])
def test_a_template_in_any_form_names_the_model(template: JSON) -> None:
    assert read_response({"input": "hi", "template": template}, LIMITS, THEIRS).model == "template:p"


@pytest.mark.parametrize("template", [True, 1, [], {}, {"name": 1}, {"variables": {}}])
def test_a_template_without_a_name_is_not_a_model(template: JSON) -> None:
    with pytest.raises(BadCall) as caught:
        read_response({"input": "hi", "template": template}, LIMITS, THEIRS)
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"conversation": "conv_1", "previous_response_id": "resp_1"}, "conversation"),
        ({"background": True, "store": False}, "store"),
        ({"conversation": {}}, "conversation.id"),
        ({"prompt": {}}, "prompt.id"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ],
)
def test_conflicting_fields_are_refused(body: JSON, param: str) -> None:
    with pytest.raises(BadCall) as caught:
        read_response({"model": "m", "input": "hi", **body}, LIMITS, THEIRS)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("prompt", "param", "field"),
    [
        (True, "template.name", "prompt.id"),
        (True, "template.variables", "prompt.variables"),
        (True, "template", "prompt"),
        (False, "template.name", "template.name"),
        (False, "messages[3].content", "input"),
        (True, "model", "model"),
        (False, "response_format", "text.format"),
        (False, "response_format.json_schema.schema", "text.format"),
        (False, "max_tokens", "max_output_tokens"),
        (False, None, None),
    ],
)
def test_errors_found_after_translation_name_the_original_field(prompt: bool, param: str | None, field: str) -> None:
    body = {"model": "m", "input": "hi", **({"prompt": {"id": "p"}} if prompt else {})}
    assert read_response(body, LIMITS, THEIRS).spelled(param) == field


def test_the_same_events_give_the_same_bytes() -> None:
    head = read_response(BODIES[1], LIMITS, THEIRS).head(1)
    events: list[Event] = [
        Thinking("hm"),
        Text("a"),
        ToolCalled("c", "f", "{}"),
        Text("b"),
        Finish("tool_calls"),
        Usage(1, 2, 3),
    ]
    one, other = Response(head, Moment(5)), Response(head, Moment(5))
    assert [one.write(event) for event in events] == [other.write(event) for event in events]
    assert one.end() == other.end() and one.document() == other.document()
    answer = Answer()
    for event in events:
        answer.add(event)
    whole = orjson.loads(ResponseStyle(head).whole(answer, ""))
    assert whole["output"] == one.document()["output"] and len(whole["output"]) == 3


PROBS = st.just(({"token": "a", "logprob": -1.0},))
SAID = (
    st.builds(Text, st.sampled_from(["", "a", "bc"]))
    | st.builds(Text, st.just("a"), st.just(0), PROBS)
    | st.builds(Thinking, st.sampled_from(["", "hm"]))
    | st.builds(ToolCalled, st.just("c"), st.just("f"), st.just("{}"))
    | st.just(Sources(({"text": "p"},), ({"type": "file_citation", "index": 0},)))
)


@given(
    events=st.lists(SAID, max_size=12), end=st.lists(st.builds(Finish, st.sampled_from(["stop", "length"])), max_size=1)
)
def test_hearing_events_gives_the_same_document_as_writing_them(events: list[Event], end: list[Event]) -> None:
    head = read_response(BODIES[1], LIMITS, THEIRS).head(1)
    written, heard = Response(head, Moment(5)), Response(head, Moment(5))
    for event in [*events, *end, Usage(1, 2)]:
        written.write(event)
        heard.hear(event)
    assert heard.document() == written.document()


def test_hearing_events_serialises_nothing() -> None:
    heard = Response(read_response(BODIES[1], LIMITS, THEIRS).head(1), Moment(5))
    for kind in (Thinking, Text):
        heard.hear(kind("a"))
        before = heard.frames.count
        for _ in range(50):
            heard.hear(kind("a"))
        assert heard.frames.count == before


def test_a_failure_names_its_field_in_the_stream() -> None:
    response = Response(read_response(BODIES[1], LIMITS, THEIRS).head(1), Moment(5))
    told = response.failed(BadCall("Too much.", param="input", code="context_length_exceeded")).decode()
    (error,) = [orjson.loads(line[6:]) for line in told.splitlines() if line.startswith('data: {"type":"error"')]
    assert (error["code"], error["param"], error["message"]) == ("context_length_exceeded", "input", "Too much.")
