"""Keys, which are computed once for a repeated chat."""

from __future__ import annotations

import pytest

from plugins.cache.key import Keys, asked_of, canonical_form, key_of
from proxy.types import Call, Chat, Message, ToolCall


def call(text: str = "hi", route: str = "chat") -> Call:
    return Call("id", route, "m", Chat((Message("user", text),)))


def remembered(keys: Keys, one: Call, stamp: str = "stamp") -> tuple[bytes, str]:
    made = keys.of(one, stamp)
    keys.remember(one, stamp, *made)
    return made


def test_equal_chats_have_equal_keys() -> None:
    keys, one = Keys(), call()
    made = remembered(keys, one)
    told = canonical_form(asked_of(one.ask), "chat", "stamp")
    assert made == keys.of(one, "stamp") == keys.of(call(), "stamp") == (told, key_of(told))


def test_the_model_and_the_route_are_part_of_the_key() -> None:
    keys, one = Keys(), call()
    found = [remembered(keys, *of) for of in ((one, "a"), (one, "b"), (one.but(route="internal"), "b"), (one, "a"))]
    assert len(set(found)) == 3 and found[0] == found[3]


def test_remembered_keys_are_freed_with_their_chats() -> None:
    keys = Keys()
    held = [call(str(number)) for number in range(20)]
    assert len({remembered(keys, one) for one in held}) == len(keys.known) == 20
    del held[5:]
    assert len(keys.known) == 5
    assert len({remembered(keys, call(str(number))) for number in range(100, 1000)}) == 900
    assert len(keys.known) <= 6


def called(arguments: str) -> str:
    """The key of a chat with a function call."""
    message = Message("assistant", tool_calls=(ToolCall("id", "f", arguments),))
    return key_of(canonical_form(asked_of(Chat((message,))), "chat", "stamp"))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ('{"a": 1, "b": [2]}', '{"b":[2],"a":1.0}', False),
        ('{"a": 1, "b": [2]}', '{"b":[2],"a":1}', True),
        ('{"wei": 123456789012345678901}', '{"wei": 123456789012345678902}', False),
        ('{"wei": 123456789012345678901}', '{"wei": 123456789012345678901}', True),
    ],
)
def test_tool_arguments_are_compared_by_value(one: str, other: str, same: bool) -> None:
    assert (called(one) == called(other)) is same


@pytest.mark.parametrize("levels", [190, 199, 230, 1000])
def test_tool_arguments_of_any_depth_have_a_key(levels: int) -> None:
    assert called('{"a": ' + "[" * levels + "1" + "]" * levels + "}") != called("{}")
