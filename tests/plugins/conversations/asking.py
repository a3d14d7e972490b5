"""Helpers for the tests of conversations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from plugins.conversations.conversation import Conversation
from plugins.conversations.messages import StoredMessage
from plugins.conversations.store import Limits, Store
from proxy.upstreams.demo import Said as Answer
from proxy.upstreams.demo import Simulator
from tests.conftest import ASK, Running

KEYS = "keys: {alice: a-key, bob: b-key, ops: {key: o-key, role: admin}}\n"
A, B, OPS = ({"Authorization": f"Bearer {key}"} for key in ("a-key", "b-key", "o-key"))
Json = dict[str, Any]


def config(url: str, chain: str = "conversations", more: str = "", **settings: Any) -> str:
    plugins: Json = {name: {} for name in chain.split(", ")} | {"conversations": settings}
    chains = {"chat": chain.split(", "), "completions": [], "embeddings": [], "internal": []}
    return f"database: {{url: '{url}'}}\nplugins: {json.dumps(plugins)}\nchains: {json.dumps(chains)}\n{KEYS}{more}"


async def say(
    run: Running, text: str | list[Json], talk: str | None = "t", who: Mapping[str, str] = A, **body: Any
) -> str:
    """Make a chat call in a conversation; gives the answer's text.  text: a user's message, or a list of messages."""
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
    given = {**ASK, "messages": messages, **({"conversation": talk} if talk else {}), **body}
    response = await run.http.post(f"{run.url}/v1/chat/completions", json=given, headers=who)
    told = await response.text()
    assert response.status == 200, told
    return str(json.loads(told)["choices"][0]["message"]["content"]) if not body.get("stream") else told


async def asks(run: Running, method: str, path: str, who: Mapping[str, str] = A, status: int = 200, **more: Any) -> Any:
    response = await run.http.request(method, f"{run.url}{path}", headers=who, **more)
    text = await response.text()
    assert response.status == status, text
    return json.loads(text)


def store_of(run: Running) -> Store:
    return Store(store_host(run), Limits(1000, 1000))


async def kept(run: Running, id: str = "t", owner: str = "alice") -> list[StoredMessage]:
    store = store_of(run)
    talk = await store.talk(owner, id)
    async with store.database.reading() as connection:
        return await store.turns(connection, talk)


async def talk_of(run: Running, id: str = "t", owner: str = "alice") -> Conversation:
    return await store_of(run).talk(owner, id)


def store_host(run: Running) -> Any:
    """The part of a plugin's host that a store needs."""

    class Lent:
        database = run.server.services.state["database"]
        clock = run.server.services.clock
        background = run.server.services.background

    return Lent()


def echo() -> Simulator:
    """An Ollama that repeats the last message."""
    return Simulator(say=lambda body: Answer(f"heard {body['messages'][-1]['content']}" if body["messages"] else "x"))


def texts(stored_messages: list[StoredMessage]) -> list[str]:
    return [one.message.text for one in stored_messages]
