"""A body of very many parts keeps nobody else waiting: it is read, and its call planned, beside the event loop."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import BARE, Start

SAID = {"role": "user", "content": "hi"}


class Watched:
    """Notes in which threads a function runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
        module, _, name = place.rpartition(".")
        self.real: Callable[..., Any] = getattr(importlib.import_module(module), name)
        self.threads: list[threading.Thread] = []
        monkeypatch.setattr(place, self.noted)

    def noted(self, *args: Any, **named: Any) -> Any:
        self.threads.append(threading.current_thread())
        return self.real(*args, **named)

    @property
    def beside(self) -> bool:
        (one,) = self.threads
        self.threads = []
        return one is not threading.main_thread()


@pytest.mark.parametrize(
    ("path", "field", "reader"),
    [
        ("/v1/chat/completions", "messages", "proxy.wire.openai_chat.read_chat"),
        ("/v1/responses", "input", "proxy.edge.responses.read_response"),
        ("/v1/responses/input_tokens", "input", "proxy.edge.responses.read_response"),
        ("/api/chat", "messages", "proxy.wire.ollama_in.read_native"),
    ],
)
async def test_a_body_of_many_parts_is_read_beside_the_event_loop(
    start: Start, monkeypatch: pytest.MonkeyPatch, path: str, field: str, reader: str
) -> None:
    watched = Watched(monkeypatch, reader)
    async with start(BARE) as run:
        for count, beside in ((10, False), (1200, True)):
            async with run.http.post(f"{run.url}{path}", json={"model": "demo", field: [SAID] * count}) as response:
                assert response.status == 200 or "context" in await response.text()
            assert watched.beside is beside


async def test_several_large_bodies_are_read_one_after_the_other(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop would wait for each of several threads."""
    watched = Watched(monkeypatch, "proxy.wire.openai_chat.read_chat")
    async with start(BARE) as run:
        await asyncio.gather(*(run.chat(messages=[SAID] * (1200 + number)) for number in range(4)))
    assert len(watched.threads) == 4 and len(set(watched.threads)) == 1


async def test_what_is_wrong_in_a_body_of_many_parts_is_named(start: Start) -> None:
    async with start(BARE) as run:
        body = {"model": "demo", "messages": [*[SAID] * 1200, {"role": "nobody"}]}
        async with run.http.post(f"{run.url}/v1/chat/completions", json=body) as response:
            assert response.status == 400
            assert (await response.json())["error"]["param"] == "messages[1200].role"


def tools(count: int) -> list[dict[str, Any]]:
    properties = {f"p{number}": {"type": "string", "description": "x" * 50} for number in range(20)}
    return [
        {"type": "function", "function": {"name": f"f{number}", "parameters": {"properties": properties}}}
        for number in range(count)
    ]


async def test_large_schemas_are_translated_beside_the_event_loop(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch, "proxy.wire.ollama_chat.plan")
    async with start(BARE) as run:
        for count, beside in ((3, False), (60, True)):
            response = await run.chat(tools=tools(count))
            assert response.status == 200 or "context" in await response.text()
            assert watched.beside is beside
