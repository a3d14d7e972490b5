"""Keys that are made once for a chat that comes again."""

from __future__ import annotations

import pytest

from plugins.cache.key import Keys, asked_of, key_of, told_of
from proxy.types import Call, Chat, Message, ToolCall


def call(text: str = "hi", route: str = "chat") -> Call:
    return Call("id", route, "m", Chat((Message("user", text),)))


def test_the_same_chat_has_the_key_that_an_equal_one_has() -> None:
    keys, one = Keys(), call()
    made = keys.of(one, "stamp")
    told = told_of(asked_of(one.ask), "chat", "stamp")
    assert made == keys.of(one, "stamp") == keys.of(call(), "stamp") == (told, key_of(told))


def test_another_model_or_route_makes_another_key_of_the_same_chat() -> None:
    keys, one = Keys(), call()
    found = [keys.of(one, "a"), keys.of(one, "b"), keys.of(one.but(route="internal"), "b"), keys.of(one, "a")]
    assert len(set(found)) == 3 and found[0] == found[3]


def test_keys_go_with_their_chats() -> None:
    keys = Keys()
    held = [call(str(number)) for number in range(20)]
    assert len({keys.of(one, "stamp") for one in held}) == len(keys.known) == 20
    del held[5:]
    assert len(keys.known) == 5
    assert len({keys.of(call(str(number)), "stamp") for number in range(100, 1000)}) == 900
    assert len(keys.known) <= 6


def called(arguments: str) -> str:
    """The key of a chat in which a function was called."""
    message = Message("assistant", tool_calls=(ToolCall("id", "f", arguments),))
    return key_of(told_of(asked_of(Chat((message,))), "chat", "stamp"))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ('{"a": 1, "b": [2]}', '{"b":[2],"a":1.0}', False),
        ('{"a": 1, "b": [2]}', '{"b":[2],"a":1}', True),
        ('{"wei": 123456789012345678901}', '{"wei": 123456789012345678902}', False),
        ('{"wei": 123456789012345678901}', '{"wei": 123456789012345678901}', True),
    ],
)
def test_arguments_are_equal_when_their_values_are(one: str, other: str, same: bool) -> None:
    assert (called(one) == called(other)) is same


@pytest.mark.parametrize("levels", [190, 199, 230, 1000])
def test_arguments_of_any_depth_have_a_key(levels: int) -> None:
    assert called('{"a": ' + "[" * levels + "1" + "]" * levels + "}") != called("{}")
