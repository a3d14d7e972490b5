"""Repeated requests: their parsed bodies are remembered, which changes nothing but the speed."""

from __future__ import annotations

import json
from typing import Any

from proxy.edge.ollama import Ollama
from proxy.edge.openai import OpenAI
from tests.conftest import ASK, HI, Running, Start
from tests.plugins.cache.test_cache import DIFFERENT
from tests.whole.asking import asked, data_url, error_of, picture

RETRIED = "plugins: {timeouts: {}, retry: {}}\nchains: {chat: [timeouts, retry]}\n"
CACHED = "plugins: {cache: {}}\nchains: {chat: [cache]}\n"


def dialect_at(run: Running, path: str) -> Any:
    """The dialect that answers at a path."""
    found = getattr(run.server.live.pipeline.router.exact["POST", path].handle, "__self__", None)
    assert isinstance(found, OpenAI | Ollama)
    return found


async def test_a_repeated_request_reaches_the_upstream_unchanged(start: Start) -> None:
    async with start(RETRIED) as run:
        for body in DIFFERENT:
            for _ in range(4):
                response = await run.chat(**body)
                assert response.status == 200, await response.text()
                await response.read()
        sent = [json.dumps(one) for one in asked(run.ollama)]
        calls = [body.get("n", 1) for body in DIFFERENT]
        assert len(sent) == 4 * sum(calls) and len(dialect_at(run, "/v1/chat/completions").known.young) == len(
            DIFFERENT
        )
        for count in calls:
            rounds, sent = sent[: 4 * count], sent[4 * count :]
            assert len({tuple(sorted(rounds[at : at + count])) for at in range(0, 4 * count, count)}) == 1


async def test_repeated_native_requests_reach_the_upstream_unchanged(start: Start) -> None:
    async with start(RETRIED) as run:
        for _ in range(4):
            body = {"model": "demo", "messages": HI, "stream": False, "options": {"seed": 1, "stop": ["x"]}}
            response = await run.http.post(f"{run.url}/api/chat", json=body)
            assert (await response.json())["done"]
        assert len({json.dumps(one) for one in asked(run.ollama)}) == 1
        assert len(dialect_at(run, "/api/chat").known.young) == 1


async def test_repeated_requests_share_neither_id_nor_caller_nor_headers(start: Start) -> None:
    keys = "keys: {alice: a-key, bob: b-key}\n"
    async with start(CACHED + keys) as run:
        told: list[str] = []
        for key in ("a-key", "b-key", "a-key", "b-key"):
            headers = {"Authorization": f"Bearer {key}", "Cache-Control": "no-cache" if len(told) == 3 else ""}
            body = {**ASK, "unknown": 1}
            response = await run.http.post(f"{run.url}/v1/chat/completions", json=body, headers=headers)
            told.append((await response.json())["id"])
            assert response.headers["x-gemmapy-params"] == "unknown=ignored"
            expected = ["miss", "miss", "hit", "miss"][len(told) - 1]
            assert response.headers["x-gemmapy-cache"] == expected
        assert len(set(told)) == 4


async def test_an_invalid_request_is_refused_every_time(start: Start) -> None:
    async with start("params: strict\n" + RETRIED) as run:
        wrong: list[dict[str, Any]] = [{"temperature": 3}, {"unknown": 1}, {"messages": []}]
        for body in wrong:
            for _ in range(3):
                await error_of(await run.chat(**body), 400)
        assert asked(run.ollama) == [] and not dialect_at(run, "/v1/chat/completions").known.young


async def test_a_reload_empties_the_memo_of_parsed_bodies(start: Start) -> None:
    async with start(RETRIED) as run:
        for _ in range(3):
            response = await run.chat(use_cache=False)
            assert response.headers["x-gemmapy-params"] == "use_cache=ignored"
        run.configure(CACHED)
        assert await run.server.reload()
        response = await run.chat(use_cache=False)
        assert response.headers["x-gemmapy-cache"] == "bypass" and "x-gemmapy-params" not in response.headers


async def test_bodies_with_images_are_not_remembered(start: Start) -> None:
    async with start(RETRIED) as run:
        for _ in range(3):
            assert (await run.chat(model="demo-vision", messages=picture(data_url()))).status == 200
        assert not dialect_at(run, "/v1/chat/completions").known.young
