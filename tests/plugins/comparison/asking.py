"""Helpers for the tests of comparisons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson

from plugins.comparison.api import Api
from proxy.config import Strict
from proxy.host import Host
from proxy.types import Call, Handler, Reply
from proxy.upstreams.demo import Model, Said, Simulator
from tests.conftest import Running

KEYS = "keys: {alice: a-key, bob: b-key, ops: {key: o-key, role: admin}, small: {key: s-key, models: ['llama*']}}\n"
A, B, OPS, SMALL = ({"Authorization": f"Bearer {key}"} for key in ("a-key", "b-key", "o-key", "s-key"))
Json = dict[str, Any]
TWO = ["llama", "mistral"]
THREE = [*TWO, "phi"]


class Odd:
    """A plugin that raises an unexpected exception for calls to `llama` only."""

    class Settings(Strict):
        pass

    def __init__(self, settings: Settings, host: Host) -> None:
        pass

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        if call.model == "llama":
            raise ZeroDivisionError("a secret of the server")
        return await call_next(call)


def config(url: str, chain: str = "", internal: str = "", more: str = "", **settings: Any) -> str:
    names = [name for name in dict.fromkeys(f"{chain}, {internal}".split(", ")) if name]
    plugins: Json = {**{name: {} for name in names}, "comparison": settings}
    chains = {"chat": [name for name in chain.split(", ") if name], "internal": [n for n in internal.split(", ") if n]}
    return f"database: {{url: '{url}'}}\nplugins: {json.dumps(plugins)}\nchains: {json.dumps(chains)}\n{KEYS}{more}"


def judged(body: Json) -> Said | None:
    """A judge that prefers `llama`'s answer wherever it is; the model `first` prefers the first answer."""
    if body.get("format") is None or not body.get("messages"):
        return None
    if body["model"].startswith("first"):
        return Said(json.dumps({"reason": "it is first", "winner": "A"}))
    if body["model"].startswith("broken"):
        return Said("no JSON at all")
    shown = body["messages"][-1]["content"]
    if "I am llama" not in shown:
        return Said(json.dumps({"reason": "both are alike", "winner": "tie"}))
    llama_first = shown.index("the answer of A") < shown.index("I am llama") < shown.index("the answer of B")
    return Said(json.dumps({"reason": "it is a llama", "winner": "A" if llama_first else "B"}))


def models(*more: str, **options: Any) -> Simulator:
    """Simulated models whose answers name them."""

    def say(body: Json) -> Said | None:
        if (said := judged(body)) is not None:
            return said
        return Said(f"I am {body['model'].partition(':')[0]}, and you said {body['messages'][-1]['content']}")

    names = (*THREE, "judge", "first", "broken", *more)
    found = [Model(f"{name}:latest", frozenset({"completion"})) for name in names]
    return Simulator(models=found, say=options.pop("say", say), **options)


async def asks(
    run: Running, method: str, path: str, who: Mapping[str, str] = A, status: int | None = 200, **body: Any
) -> Any:
    async with run.http.request(method, f"{run.url}{path}", headers=who, json=body or None) as response:
        text = await response.text()
        assert response.status == status or status is None, text
        return orjson.loads(text)


async def compare(run: Running, who: Mapping[str, str] = A, status: int = 200, **body: Any) -> Any:
    given = {"models": TWO, "prompt": "hi", **body}
    return await asks(run, "POST", "/api/ollama/compare", who, status, **given)


async def streamed(run: Running, who: Mapping[str, str] = A, **body: Any) -> list[tuple[str, Json]]:
    """The events of a comparison's stream; an error at its end as `error`."""
    given = {"models": TWO, "prompt": "hi", "stream": True, **body}
    async with run.http.post(f"{run.url}/api/ollama/compare", headers=who, json=given) as response:
        text = await response.text()
        assert response.status == 200 and response.content_type == "text/event-stream", text
    found = []
    for frame in text.split("\n\n")[:-1]:
        if frame.startswith(":"):
            continue
        name, data = frame.split("\n", 1) if frame.startswith("event: ") else ("event: error", frame)
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def api_of(run: Running) -> Api:
    (found,) = [
        route.handle.__self__  # type: ignore[attr-defined]
        for route in run.server.live.pipeline.router.routes
        if route.path == "/api/ollama/compare"
    ]
    assert isinstance(found, Api)
    return found
