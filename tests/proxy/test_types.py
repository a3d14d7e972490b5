from __future__ import annotations

import pytest

from proxy.observer import Observer, Try
from proxy.types import Call, Chat, Deadline, Message, Receipt


def listen(text: str) -> None:
    """Listens to a call's progress."""


def test_a_changed_copy_differs_in_nothing_else() -> None:
    call = Call(
        id="1",
        route="chat",
        model="m",
        ask=Chat(messages=(Message("user", "hi"),)),
        stream=True,
        caller="alice",
        key="key_1",
        models=("gemma*",),
        about={"user": "u"},
        extra={"rag": True},
        headers={"cache-control": "no-store"},
        tags={"a": "b"},
        deadline=Deadline(1.0),
        connect_timeout=2.0,
        trail={"X-Request-Id": "1"},
        progress=listen,
        receipt=Receipt({"id": "1"}, []),
        observer=Observer(),
        trying=Try("chat", 1, 0.0),
        meter="chat 1",
    )
    plain = Call(id="", route="", model="", ask=Chat(messages=()))
    for name in Call.__struct_fields__:
        assert getattr(call, name) != getattr(plain, name), "the test must change every field"
        assert getattr(call.but(), name) == getattr(call, name)
    changed = call.but(model="other", deadline=None)
    assert (changed.model, changed.deadline, changed.caller) == ("other", None, "alice")
    assert call.model == "m" and call.deadline is not None and call.deadline.at == 1.0


def test_a_field_that_a_call_does_not_have_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        Call(id="1", route="chat", model="m", ask=Chat(messages=())).but(modle="x")


def test_a_call_is_immutable() -> None:
    call = Call(id="1", route="chat", model="m", ask=Chat(messages=()))
    with pytest.raises(AttributeError):
        call.model = "other"  # type: ignore[misc]
