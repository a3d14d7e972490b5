"""Answers have OpenAI's form, whole and in chunks, checked with the SDK's own types."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from proxy.streams import Answer
from proxy.types import JSON, Event, Finish, Text, Thinking, ToolCalled, Usage
from proxy.wire.ids import new_id
from proxy.wire.openai_answer import ChatStyle

from .asks import unknown_fields

LOGPROB = {
    "token": "é",
    "logprob": -0.5,
    "bytes": [195, 169],
    "top_logprobs": [{"token": "é", "logprob": -0.5, "bytes": [195, 169]}],
}
BARE_LOGPROB = {"token": "a", "logprob": -1, "bytes": [97]}
ANSWERS: dict[str, list[Event]] = {
    "text": [Text("Hel"), Text("lo"), Text(" wörld\n\u2028"), Finish("stop"), Usage(3, 2, 1)],
    "empty": [Finish("stop"), Usage(None, None)],
    "cut short": [Text("Hel"), Usage(3, 2), Finish("length")],
    "thinking": [Thinking("hm"), Thinking(", so"), Text("42"), Finish("stop"), Usage(3, 2)],
    "only thinking": [Thinking("hm"), Finish("length")],
    "tools": [
        Text("Let me see."),
        ToolCalled("call_1", "f", '{"a":1}'),
        ToolCalled("call_2", "g", "{}"),
        Usage(3, 2),
        Finish("tool_calls"),
    ],
    "only tools": [Thinking("f?"), ToolCalled("call_1", "f", "{}"), Finish("tool_calls")],
    "logprobs": [Text("é", 0, (LOGPROB,)), Text("a", 0, (BARE_LOGPROB,)), Text("", 0, (LOGPROB,)), Finish("stop")],
    "choices": [
        Text("one", 1),
        Text("zero"),
        ToolCalled("call_3", "f", "{}", 2),
        ToolCalled("call_4", "f", "{}", 1),
        Finish("stop"),
        Finish("tool_calls", 1),
        Finish("tool_calls", 2),
        Usage(9, 9),
    ],
}
every_answer = pytest.mark.parametrize("events", ANSWERS.values(), ids=ANSWERS)


def answer(events: Sequence[Event]) -> Answer:
    found = Answer()
    for event in events:
        found.add(event)
    return found


def whole(events: Sequence[Event], legacy_functions: bool = False) -> JSON:
    style = ChatStyle("m", legacy_functions=legacy_functions)
    return orjson.loads(style.whole(answer(events), "fp"))


def chunks(events: Sequence[Event], include_usage: bool = False, legacy_functions: bool = False) -> list[JSON]:
    """The chunks as JSON; the stream is whole events of one line each, and [DONE] at its end."""
    writer = ChatStyle("m", include_usage, legacy_functions).chunks("fp")
    frames = (b"".join(map(writer.write, events)) + writer.end()).split(b"\n\n")
    assert frames[-2:] == [b"data: [DONE]", b""]
    assert all(frame.startswith(b"data: {") and b"\n" not in frame for frame in frames[:-2])
    return [orjson.loads(frame.removeprefix(b"data: ")) for frame in frames[:-2]]


def put_together(found: list[JSON]) -> dict[int, JSON]:
    """The chunks added up like in a client: text, reasoning, tool calls and finish reason of each choice."""
    choices: dict[int, JSON] = {}
    for chunk in found:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            made = choices.setdefault(choice["index"], {"text": "", "thinking": "", "calls": {}, "finish": None})
            made["text"] += delta.get("content") or ""
            made["thinking"] += delta.get("reasoning_content") or ""
            made["calls"] |= {call["index"]: call["function"] for call in delta.get("tool_calls") or ()}
            made["finish"] = choice["finish_reason"] or made["finish"]
    return choices


@every_answer
@pytest.mark.parametrize("legacy_functions", [False, True])
def test_a_whole_answer_has_exactly_the_sdks_fields(events: list[Event], legacy_functions: bool) -> None:
    found = ChatCompletion.model_validate(whole(events, legacy_functions=legacy_functions), strict=True)
    assert set(unknown_fields(found)) <= {"reasoning_content"}
    assert found.usage is not None


@every_answer
@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("legacy_functions", [False, True])
def test_every_chunk_has_exactly_the_sdks_fields(
    events: list[Event], include_usage: bool, legacy_functions: bool
) -> None:
    for chunk in chunks(events, include_usage=include_usage, legacy_functions=legacy_functions):
        found = ChatCompletionChunk.model_validate(chunk, strict=True)
        assert set(unknown_fields(found)) <= {"reasoning_content"}


@every_answer
def test_the_chunks_add_up_to_the_whole_answer(events: list[Event]) -> None:
    made = put_together(chunks(events))
    assert sorted(made) == [choice["index"] for choice in whole(events)["choices"]]
    for choice in whole(events)["choices"]:
        message, same = choice["message"], made[choice["index"]]
        assert same["text"] == (message["content"] or "")
        assert same["thinking"] == message.get("reasoning_content", "")
        assert same["finish"] == choice["finish_reason"]
        assert list(same["calls"].values()) == [call["function"] for call in message.get("tool_calls", [])]


def test_content_is_null_with_tool_calls_and_empty_without_either() -> None:
    assert whole(ANSWERS["only tools"])["choices"][0]["message"]["content"] is None
    assert whole(ANSWERS["tools"])["choices"][0]["message"]["content"] == "Let me see."
    assert whole(ANSWERS["empty"])["choices"][0]["message"]["content"] == ""
    assert whole([])["choices"][0]["message"]["content"] == ""


def test_reasoning_becomes_reasoning_content() -> None:
    message = whole(ANSWERS["thinking"])["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm, so", "42")
    assert "reasoning_content" not in whole(ANSWERS["text"])["choices"][0]["message"]


def test_tool_calls_have_ids_string_arguments_and_an_index_per_choice() -> None:
    calls = [
        (choice["index"], call)
        for chunk in chunks(ANSWERS["tools"] + ANSWERS["choices"][2:4])
        for choice in chunk["choices"]
        for call in choice["delta"].get("tool_calls", ())
    ]
    assert [(choice, call["index"], call["id"]) for choice, call in calls] == [
        (0, 0, "call_1"),
        (0, 1, "call_2"),
        (2, 0, "call_3"),
        (1, 0, "call_4"),
    ]
    assert all(isinstance(call["function"]["arguments"], str) for _, call in calls)


@pytest.mark.parametrize(
    ("name", "reason"), [("text", "stop"), ("cut short", "length"), ("tools", "tool_calls"), ("empty", "stop")]
)
def test_finish_reasons(name: str, reason: str) -> None:
    assert whole(ANSWERS[name])["choices"][0]["finish_reason"] == reason
    finishes = [chunk["choices"][0]["finish_reason"] for chunk in chunks(ANSWERS[name])]
    assert finishes == [None] * (len(finishes) - 1) + [reason]


@pytest.mark.parametrize("name", ["tools", "only tools"])
def test_deprecated_functions_are_answered_in_the_deprecated_shape(name: str) -> None:
    choice = whole(ANSWERS[name], legacy_functions=True)["choices"][0]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"]["name"] == "f" and "tool_calls" not in choice["message"]
    last = chunks(ANSWERS[name], legacy_functions=True)[-1]
    assert last["choices"][0]["finish_reason"] == "function_call"
    assert whole(ANSWERS["text"], legacy_functions=True)["choices"][0]["finish_reason"] == "stop"


def test_the_first_chunk_of_every_choice_names_the_role() -> None:
    roles = [
        (choice["index"], choice["delta"]["role"])
        for chunk in chunks(ANSWERS["choices"])
        for choice in chunk["choices"]
        if "role" in choice["delta"]
    ]
    assert roles == [(1, "assistant"), (0, "assistant"), (2, "assistant")]


@pytest.mark.parametrize(("name", "content"), [("text", ""), ("empty", ""), ("only tools", None), ("thinking", None)])
def test_the_first_chunk_has_content_only_if_text_comes_first(name: str, content: str | None) -> None:
    first = chunks(ANSWERS[name])[0]["choices"][0]["delta"]
    assert first == {"role": "assistant", "content": content, "refusal": None}


def test_choices_are_listed_by_index() -> None:
    assert [choice["index"] for choice in whole(ANSWERS["choices"])["choices"]] == [0, 1, 2]


def test_requested_usage_is_in_the_last_chunk_and_null_in_all_others() -> None:
    *others, last = chunks(ANSWERS["text"], include_usage=True)
    assert all(chunk["usage"] is None for chunk in others)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    assert not any("usage" in chunk for chunk in chunks(ANSWERS["text"]))


def test_usage_has_cached_tokens_only_if_they_are_known() -> None:
    assert whole(ANSWERS["text"])["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
    assert whole([Usage(3, 2, 0)])["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    nothing = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert whole(ANSWERS["empty"])["usage"] == whole([])["usage"] == nothing
    assert chunks([Finish("stop")], include_usage=True)[-1]["usage"] == nothing


def test_logprobs_are_the_tokens_with_lists_of_alternatives() -> None:
    filled = {**BARE_LOGPROB, "top_logprobs": []}
    assert whole(ANSWERS["logprobs"])["choices"][0]["logprobs"]["content"] == [LOGPROB, filled, LOGPROB]
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks(ANSWERS["logprobs"])]
    assert [one and one["content"] for one in told] == [None, [LOGPROB], [filled], [LOGPROB], None]
    assert whole(ANSWERS["text"])["choices"][0]["logprobs"] is None


def test_every_chunk_of_one_answer_has_its_id_and_other_answers_have_others() -> None:
    first, second = chunks(ANSWERS["choices"], include_usage=True), chunks(ANSWERS["text"])
    assert len({chunk["id"] for chunk in first}) == 1
    assert first[0]["id"] != second[0]["id"] and first[0]["id"].startswith("chatcmpl-")
    assert len({new_id("chatcmpl-") for _ in range(1_000)}) == 1_000


def test_the_models_name_is_the_requested_one() -> None:
    writer = ChatStyle('my "model"').chunks("fp")
    assert orjson.loads(writer.write(Text("x")).split(b"\n\n")[0][6:])["model"] == 'my "model"'
