"""Items of responses and conversations, and the messages that they represent."""

from __future__ import annotations

import time

import pytest
from openai.types.responses import ResponseInputMessageItem, ResponseItem
from pydantic import TypeAdapter

from proxy.errors import BadCall
from proxy.types import JSON, Image, Message, ToolCall
from proxy.wire.openai_items import Item, check_outputs, items_of, messages, with_pictures
from proxy.wire.openai_items_in import items

from .asks import LIMITS, PNG, data_url

LISTED: TypeAdapter[object] = TypeAdapter(ResponseItem)


def read(*given: JSON) -> list[Item]:
    return items(list(given), "input", LIMITS)


def call(id: str = "c1", **more: JSON) -> JSON:
    return {"type": "function_call", "call_id": id, "name": "f", "arguments": "{}", **more}


def result(id: str = "c1", output: JSON = "4") -> JSON:
    return {"type": "function_call_output", "call_id": id, "output": output}


def thought(text: str = "hm") -> JSON:
    return {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}


PAGE: JSON = {"type": "url_citation", "url": "https://a.test", "title": "A", "start_index": 0, "end_index": 3}
FILE: JSON = {"type": "file_citation", "file_id": "file-1", "filename": "a.txt", "index": 3}


def cited(*annotations: JSON) -> JSON:
    """An answer with these annotations."""
    part = {"type": "output_text", "text": "[1]", "annotations": list(annotations)}
    return {"type": "message", "role": "assistant", "content": [part]}


def test_annotations_of_an_item_are_kept() -> None:
    (one,) = read(cited(PAGE, {**FILE, "container": {"of": "another server's"}}))
    LISTED.validate_python(one)
    assert one["content"][0]["annotations"] == [PAGE, FILE] and messages([one]) == (Message("assistant", "[1]"),)


def test_a_text_is_one_user_message() -> None:
    (one,) = items("hi", "input", LIMITS)
    assert ResponseInputMessageItem.model_validate(one, strict=True).role == "user"
    assert messages([one]) == (Message("user", "hi"),)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"role": "developer", "content": "be kind"}, Message("system", "be kind")),
        ({"role": "assistant", "content": "hello"}, Message("assistant", "hello")),
        ({"role": "assistant", "content": []}, Message("assistant", "")),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, Message("assistant", "no")),
        (
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
            Message("user", "a"),
        ),
        (
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": data_url(PNG)}],
            },
            Message("user", "a", (Image(data_url(PNG)[22:]),)),
        ),
        (result(output=[{"type": "input_text", "text": "4"}]), Message("tool", "4", tool_call_id="c1")),
        (
            result(output=[{"type": "input_image", "image_url": data_url(PNG)}, {"type": "input_text", "text": "4"}]),
            Message("tool", "4", (Image(data_url(PNG)[22:]),), tool_call_id="c1"),
        ),
    ],
)
def test_every_kind_of_item_is_listed_in_openais_form_and_becomes_a_message(given: JSON, message: Message) -> None:
    (one,) = read(given)
    LISTED.validate_python(one)
    assert messages([one]) == (message,)


def test_items_of_one_turn_are_one_message() -> None:
    asked, said = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "x"}
    so = {**said, "content": "4"}
    whole = read(asked, thought(), said, call(), call("c2"), result(), result("c2"), thought("so"), so)
    for one in whole:
        LISTED.validate_python(one)
    first, second = ToolCall("c1", "f", "{}"), ToolCall("c2", "f", "{}")
    assert messages(whole) == (
        Message("user", "hi"),
        Message("assistant", "x", thinking="hm", tool_calls=(first, second)),
        Message("tool", "4", tool_call_id="c1"),
        Message("tool", "4", tool_call_id="c2"),
        Message("assistant", "4", thinking="so"),
    )


def test_results_follow_their_calls_for_any_order_of_a_turns_items() -> None:
    said, other = {"role": "assistant", "content": "x"}, {"role": "assistant", "content": "y"}
    assert messages(read(call(), said, result(), other)) == (
        Message("assistant", "x", tool_calls=(ToolCall("c1", "f", "{}"),)),
        Message("tool", "4", tool_call_id="c1"),
        Message("assistant", "y"),
    )


def test_two_consecutive_answers_stay_two() -> None:
    told = {"role": "assistant", "content": "x"}
    assert len(messages(read(told, told))) == 2 and len(messages(read(call(), thought(), call("c2")))) == 2


def test_valid_ids_are_kept_and_invalid_or_duplicate_ones_replaced() -> None:
    told = {"role": "user", "content": "x"}
    ids = [one["id"] for one in read({**told, "id": "msg_1"}, {**told, "id": "msg_1"}, {**told, "id": "\0"}, told)]
    assert ids[0] == "msg_1" and len(set(ids)) == 4 and all(id.startswith("msg_") for id in ids)


@pytest.mark.parametrize(
    "message",
    [
        Message("user", "a"),
        Message("user", "a", (Image(data_url(PNG)[22:]),)),
        Message("system", "a"),
        Message("assistant", "a", thinking="b", tool_calls=(ToolCall("c", "f", '{"a":1}'),)),
        Message("assistant", ""),
        Message("assistant", thinking="b"),
        Message("tool", "4", tool_call_id="c"),
    ],
)
def test_messages_become_items_and_back(message: Message) -> None:
    whole = items_of(message)
    for one in whole:
        LISTED.validate_python(one)
    assert messages(whole) == (message,)


def test_linked_images_are_filled_into_their_items() -> None:
    url = "https://a.test/a.png"
    (one,) = read({"role": "user", "content": [{"type": "input_image", "image_url": url}]})
    (other,) = read(result(output=[{"type": "input_image", "image_url": url}]))
    kept, too = with_pictures([one, other], {url: Image(data_url(PNG)[22:])})
    assert kept["content"][0]["image_url"] == data_url(PNG) and one["content"][0]["image_url"] == url
    assert too["output"][0]["image_url"] == data_url(PNG) and other["output"][0]["image_url"] == url


def test_images_from_a_function_are_listed() -> None:
    given = Message("tool", "here", (Image(data_url(PNG)[22:]),), tool_call_id="c1")
    (one,) = items_of(given)
    LISTED.validate_python(one)
    assert messages([one]) == (given,)


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        ({"id": "msg_1"}, "input[0]", "unsupported_item"),
        ({"type": "item_reference", "id": "msg_1"}, "input[0]", "unsupported_item"),
        ({"type": "computer_call"}, "input[0].type", "unsupported_item"),
        ({"type": ["message"]}, "input[0].type", "invalid_type"),
        ({}, "input[0].type", "missing_required_parameter"),
        ("hi", "input[0]", "invalid_type"),
        ({"role": "critic", "content": "x"}, "input[0].role", "invalid_value"),
        ({"role": "user"}, "input[0].content", "missing_required_parameter"),
        ({"role": "user", "content": []}, "input[0].content", "empty_array"),
        ({"role": "user", "content": [{"type": "input_file"}]}, "input[0].content[0].type", "invalid_value"),
        ({"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}, "input[0].content[0].file_id",
         "unsupported_parameter"),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}, "input[0].content[0].image_url",
         "invalid_image_url"),
        ({"role": "user", "content": "x", "status": "done"}, "input[0].status", "invalid_value"),
        (cited({"type": "footnote"}), "input[0].content[0].annotations[0].type", "invalid_value"),
        (cited({**PAGE, "title": None}), "input[0].content[0].annotations[0].title", "missing_required_parameter"),
        (cited({**PAGE, "end_index": "9"}), "input[0].content[0].annotations[0].end_index", "invalid_type"),
        (cited([PAGE]), "input[0].content[0].annotations[0]", "invalid_type"),
        (call(arguments="["), "input[0].arguments", "invalid_json"),
        (call(call_id=""), "input[0].call_id", "empty_string"),
        (result(output=[{"type": "input_audio"}]), "input[0].output[0].type", "invalid_value"),
        (result(output=[{"type": "input_image"}]), "input[0].output[0].image_url", "missing_required_parameter"),
        ({"type": "reasoning", "summary": [{"text": 1}]}, "input[0].summary.text", "invalid_type"),
    ],
)  # fmt: skip
def test_an_invalid_field_is_named_in_the_error(given: JSON, param: str, code: str) -> None:
    with pytest.raises(BadCall) as caught:
        read(given)
    assert (caught.value.param, caught.value.code) == (param, code)


def test_an_output_requires_its_call_unless_both_are_left_out() -> None:
    whole = read(call(), result())
    told = messages(whole)
    check_outputs(whole, told)
    check_outputs(whole, ())
    with pytest.raises(BadCall, match="call_id c1"):
        check_outputs(whole, told[1:])


def test_checking_many_outputs_takes_time_in_proportion() -> None:
    whole = [one for number in range(5000) for one in read(call(f"c{number}"), result(f"c{number}"))]
    told, began = messages(whole), time.process_time()
    check_outputs(whole, told)
    assert time.process_time() - began < 0.3  # with a set for every output it takes over a second
