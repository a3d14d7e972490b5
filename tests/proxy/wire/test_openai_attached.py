"""Files in the messages of OpenAI's requests."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from proxy.errors import BadCall
from proxy.wire.openai_attached import MOST, Attached, of_chat, of_items

DATA = base64.b64encode(b"words").decode()


def chat(*parts: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": "Hi"}, {"role": role, "content": list(parts)}]}


def file(**told: Any) -> dict[str, Any]:
    return {"type": "file", "file": told}


def test_a_file_is_replaced_by_its_text() -> None:
    body = chat({"type": "text", "text": "a"}, file(file_data=DATA, filename="x.txt"), {"type": "text", "text": "b"})
    (one,) = of_chat(body)
    assert (one.at, one.field) == ("messages[1].content[1].file", "messages[1].content[1].file.file_data")
    assert one.bytes(5) == b"words" and one.called() == "x.txt"
    assert [part["text"] for part in body["messages"][1]["content"]] == ["a", "", "b"]
    one.put("read")
    assert [part["text"] for part in body["messages"][1]["content"]] == ["a", "read", "b"]


def test_files_of_a_response_are_found_in_messages_and_function_outputs() -> None:
    part = {"type": "input_file", "file_id": "file-1"}
    body: Any = {
        "input": [
            {"role": "user", "content": [dict(part)]},
            {"type": "function_call_output", "call_id": "c", "output": [dict(part)]},
            {"role": "assistant", "content": [dict(part)]},
            "no item",
            {"role": "user", "content": "words"},
        ]
    }
    assert [one.field for one in of_items(body)] == ["input[0].content[0].file_id", "input[1].output[0].file_id"]
    assert body["input"][0]["content"] == [{"type": "input_text", "text": ""}]
    assert body["input"][2]["content"] == [part]  # the parser reports what is wrong


def test_an_image_in_an_item_can_be_a_file() -> None:
    part = {"type": "input_image", "file_id": "file-1", "detail": "low"}
    link = {"type": "input_image", "image_url": "https://a.test/a.png", "file_id": None}
    body: Any = {"items": [{"role": "user", "content": [part, link]}]}
    (one,) = of_items(body, "items")
    assert one.field == "items[0].content[0].file_id" and body["items"][0]["content"][1] == link
    one.put("data:image/png;base64,AA==")
    assert body["items"][0]["content"][0] == {**part, "image_url": "data:image/png;base64,AA==", "file_id": None}


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"image_url": "data:,"}, "input[0].content[0]", "invalid_parameter_combination"),
        ({"file_id": 5}, "input[0].content[0].file_id", "invalid_type"),
        ({"file_id": ""}, "input[0].content[0].file_id", "empty_string"),
    ],
)
def test_an_invalid_image_file_is_an_error_naming_the_field(more: Any, param: str, code: str) -> None:
    with pytest.raises(BadCall) as failed:
        of_items({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file-1", **more}]}]})
    assert (failed.value.param, failed.value.code) == (param, code)


@pytest.mark.parametrize("body", [None, [], {}, {"messages": 5}, {"messages": [5, {"role": "user", "content": [5]}]}])
def test_invalid_requests_are_left_to_the_parser(body: Any) -> None:
    assert of_chat(body) == [] == of_items(body)


@pytest.mark.parametrize(
    ("part", "param", "code"),
    [
        ({"type": "file"}, ".file", "missing_required_parameter"),
        ({"type": "file", "file": 5}, ".file", "invalid_type"),
        (file(), ".file.file_data", "missing_required_parameter"),
        (file(file_id=5), ".file.file_id", "invalid_type"),
        (file(file_id=""), ".file.file_id", "empty_string"),
        (file(file_id="a", file_data=DATA), ".file", "invalid_parameter_combination"),
        (file(file_url="http://x"), ".file.file_url", "unsupported_parameter"),
    ],
)
def test_an_invalid_file_is_an_error_naming_the_field(part: Any, param: str, code: str) -> None:
    with pytest.raises(BadCall) as failed:
        of_chat(chat(part))
    assert (failed.value.param, failed.value.code) == (f"messages[1].content[0]{param}", code)


def test_the_number_of_files_is_limited() -> None:
    with pytest.raises(BadCall) as failed:
        of_chat(chat(*(file(file_id="a") for _ in range(MOST + 1))))
    assert failed.value.code == "too_many_files"


@pytest.mark.parametrize(
    ("data", "name", "called"),
    [
        (DATA, "", "file"),
        (f"data:application/pdf;base64,{DATA}", "", "file.pdf"),
        (f"data:text/plain; charset=utf-8;base64,{DATA}", "notes", "notes.txt"),
        (f"data:text/markdown;base64,{DATA}", "a.txt", "a.txt"),
        (f"data:;base64,{DATA}", "", "file"),
    ],
)
def test_a_file_name_without_an_extension_gets_that_of_its_type(data: str, name: str, called: str) -> None:
    one = Attached({}, "at", "", data, name)
    assert one.called() == called and one.bytes(5) == b"words"


@pytest.mark.parametrize(
    ("data", "code"), [("%", "invalid_base64"), (f"text,{DATA}", "invalid_value"), (DATA * 3, "file_too_large")]
)
def test_invalid_file_data_is_refused(data: str, code: str) -> None:
    with pytest.raises(BadCall) as failed:
        Attached({}, "at", "", data, "").bytes(8)
    assert (failed.value.param, failed.value.code) == ("at.file_data", code)
