"""Estimates of the tokens in a prompt."""

from __future__ import annotations

from proxy.asks import Chat, Complete, Embed, Format, Image, Message, Tool, ToolCall
from proxy.estimates import LETTERS, PICTURE, letters

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def test_the_text_of_all_messages_counts() -> None:
    assert letters(Chat((Message("system", "abc"), Message("user", "de")))) == 5
    assert letters(Complete(prompts=("abc", "de"), system="s", suffix="t")) == 5 + 2 * 2
    assert letters(Embed(inputs=("abc", "de"))) == 5


def test_an_image_counts_with_its_tokens() -> None:
    picture = LETTERS * PICTURE
    assert letters(Chat((Message("user", "a", (Image("QQ=="),)),))) == picture + 1


def test_tools_and_schemas_count() -> None:
    plain = Chat((Message("user", "a"),))
    tool = Tool("weather", "of a city", SCHEMA)
    told = len('["weather","of a city",{"type":"object","properties":{"city":{"type":"string"}}}]')
    assert letters(Chat(plain.messages, tools=(tool, tool))) == 1 + 2 * told
    assert letters(Chat(plain.messages, format=Format())) == 1
    assert letters(Chat(plain.messages, format=Format(SCHEMA))) == 1 + told - len('["weather","of a city",]')
    called = Message("assistant", tool_calls=(ToolCall("call_1", "weather", '{"city":"Rome"}'),))
    assert letters(Chat((*plain.messages, called))) == 1 + len('weather{"city":"Rome"}')
