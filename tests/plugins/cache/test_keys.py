"""Keys that are made once for a chat that comes again."""

from __future__ import annotations

from plugins.cache.key import Keys, asked_of, key_of, told_of
from proxy.types import Call, Chat, Message


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
