"""OpenAI's messages become internal ones, one for one."""

from __future__ import annotations

import pytest

from proxy.types import JSON, Image, Message, ToolCall
from proxy.wire.openai_messages import Limits, messages

from .asks import GIF, JPEG, LIMITS, PNG, WAV, WEBP, asked, data_url, picture, refused, user, words


def read(*given: JSON) -> tuple[Message, ...]:
    return messages(list(given), LIMITS)


def called(name: str = "f", arguments: str = "{}", id: str = "call_1") -> JSON:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize("role", ["system", "developer"])
def test_developer_messages_become_system_messages(role: str) -> None:
    assert read({"role": role, "content": "be kind", "name": "ops"}) == (Message("system", "be kind", name="ops"),)


def test_text_and_image_parts_stay_one_message_text_first() -> None:
    content = [words("what is"), picture(), words("this?"), picture(JPEG)]
    (one,) = read(*user(content))
    assert one.text == "what is\nthis?"
    assert one.images == (Image(data_url(PNG)[22:]), Image(data_url(JPEG)[22:]))


@pytest.mark.parametrize("kind", [PNG, JPEG, WEBP])
@pytest.mark.parametrize("head", ["data:image/png;base64", "data:;base64"])
def test_png_jpeg_and_webp_are_recognised_by_their_contents(kind: bytes, head: str) -> None:
    body = data_url(kind).partition(",")[2]
    (one,) = read(*user([{"type": "image_url", "image_url": {"url": f"{head},{body}"}}]))
    assert one.images == (Image(body),)


def test_an_image_url_can_be_a_plain_string() -> None:
    assert read(*user([{"type": "image_url", "image_url": data_url(PNG)}]))[0].images


@pytest.mark.parametrize("url", ["http://pictures.test/a.png", "https://pictures.test/a.png"])
def test_a_link_is_kept_for_the_edge_to_fetch(url: str) -> None:
    (one,) = read(*user([{"type": "image_url", "image_url": {"url": url}}]))
    assert one.images == (Image("", url),)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        (data_url(GIF, "image/gif"), "unsupported_image"),
        (data_url(WAV), "unsupported_image"),
        (data_url(b"<svg/>"), "unsupported_image"),
        (data_url(b""), "unsupported_image"),
        ("data:image/png;base64,not base64!", "invalid_base64"),
        ("data:image/png;base64,äöü", "invalid_base64"),
        ("data:image/png,abc", "invalid_image_url"),
        ("file:///etc/passwd", "invalid_image_url"),
        ("", "empty_string"),
        (5, "invalid_type"),
    ],
)
def test_an_unreadable_image_is_refused_naming_its_field(url: JSON, code: str) -> None:
    error = refused(messages=user([words("see"), {"type": "image_url", "image_url": {"url": url}}]))
    assert (error.param, error.code) == ("messages[0].content[1].image_url.url", code)


def test_a_gif_is_refused_with_a_clear_message() -> None:
    assert "PNG, JPEG or WebP; this is a GIF" in str(refused(messages=user([picture(GIF)])))


def test_an_image_has_a_size_limit() -> None:
    error = refused(messages=user([picture(PNG + bytes(21 * 1024 * 1024))]))
    assert error.code == "image_too_large"
    assert messages(user([picture(PNG)]), Limits(max_image_bytes=len(PNG)))


@pytest.mark.parametrize(
    ("part", "note"),
    [
        (picture(detail="high"), "messages.image_url.detail"),
        ({**words("hi"), "prompt_cache_breakpoint": {"ttl": "1h"}}, "messages.content.prompt_cache_breakpoint"),
    ],
)
def test_options_of_a_part_without_effect_are_reported(part: JSON, note: str) -> None:
    assert asked(messages=user([part])).notes == {note: "ignored"}


def test_the_default_detail_is_not_reported() -> None:
    assert not asked(messages=user([picture(detail="auto")])).notes


@pytest.mark.parametrize("kind", ["input_audio", "file", "video_url", "refusal", None, 5])
def test_other_parts_are_refused_naming_the_field(kind: JSON) -> None:
    assert refused(messages=user([words("hi"), {"type": kind}])).param == "messages[0].content[1].type"


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ([], "messages"),
        ({}, "messages"),
        (["hi"], "messages[0]"),
        ([{"content": "hi"}], "messages[0].role"),
        ([{"role": "narrator", "content": "hi"}], "messages[0].role"),
        ([{"role": 5, "content": "hi"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": [words("a"), {"type": "text"}]}], "messages[0].content[1].text"),
        ([{"role": "user", "content": "hi", "name": 5}], "messages[0].name"),
        ([{"role": "system"}], "messages[0].content"),
        ([{"role": "system", "content": [picture()]}], "messages[0].content[0].type"),
        ([{"role": "assistant"}], "messages[0].content"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], "messages[0].content"),
        ([{"role": "assistant", "content": "x", "audio": {"id": "a"}}], "messages[0].audio"),
        ([{"role": "assistant", "tool_calls": {}}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [{"id": "c"}]}], "messages[0].tool_calls[0].function"),
        ([{"role": "assistant", "tool_calls": [{**called(), "type": "custom"}]}], "messages[0].tool_calls[0].type"),
        ([{"role": "assistant", "tool_calls": [called(id="")]}], "messages[0].tool_calls[0].id"),
        ([{"role": "assistant", "tool_calls": [called("")]}], "messages[0].tool_calls[0].function.name"),
        (
            [{"role": "assistant", "tool_calls": [called(), called(arguments="{")]}],
            "messages[0].tool_calls[1].function.arguments",
        ),
        (
            [{"role": "assistant", "tool_calls": [called(arguments="[]")]}],
            "messages[0].tool_calls[0].function.arguments",
        ),
        ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id"),
        ([{"role": "tool", "tool_call_id": "c"}], "messages[0].content"),
        ([{"role": "function", "content": "x"}], "messages[0].name"),
    ],
)
def test_an_invalid_message_is_refused_naming_its_field(given: JSON, param: str) -> None:
    error = refused(messages=given)
    assert error.param == param and param in str(error)


def test_a_conversation_with_tools_keeps_its_calls_and_results() -> None:
    turns = read(
        {"role": "assistant", "content": None, "tool_calls": [called("f", ' {"a": 1} '), called("g", "", "call_2")]},
        {"role": "tool", "tool_call_id": "call_1", "content": [words("warm"), words("dry")]},
        {"role": "tool", "tool_call_id": "call_2", "content": ""},
    )
    assert turns[0].tool_calls == (ToolCall("call_1", "f", '{"a": 1}'), ToolCall("call_2", "g", "{}"))
    assert turns[1:] == (
        Message("tool", "warm\ndry", tool_call_id="call_1"),
        Message("tool", "", tool_call_id="call_2"),
    )


def test_deprecated_function_messages_get_matching_ids() -> None:
    turns = read(
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "1"},
        {"role": "assistant", "content": "so", "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": None},
    )
    first, second = turns[0].tool_calls[0].id, turns[2].tool_calls[0].id
    assert first and second and first != second
    assert [one.tool_call_id for one in turns[1::2]] == [first, second]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_earlier_reasoning_is_kept(field: str) -> None:
    assert read({"role": "assistant", "content": "2", field: "1+1"})[0].thinking == "1+1"
    legacy = {"name": "f", "arguments": "{}"}
    assert read({"role": "assistant", "function_call": legacy, field: "hm", "name": "bob"})[0] == Message(
        "assistant", thinking="hm", tool_calls=(ToolCall("call_0", "f", "{}"),), name="bob"
    )


def test_null_reasoning_does_not_hide_the_other_field() -> None:
    assert read({"role": "assistant", "content": "2", "reasoning_content": None, "reasoning": "x"})[0].thinking == "x"


@pytest.mark.parametrize(
    "given", [{"content": None, "refusal": "no"}, {"content": [{"type": "refusal", "refusal": "no"}]}]
)
def test_an_earlier_refusal_becomes_text(given: JSON) -> None:
    assert read({"role": "assistant", **given}) == (Message("assistant", "no"),)
