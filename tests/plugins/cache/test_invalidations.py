"""Invalidated entries stay out of the cache, even if their answer was still being generated."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from plugins.cache.invalidations import MOST, Invalidations
from proxy.upstreams.demo import Fault, Simulator
from tests.clocks import Watch
from tests.conftest import Running, Start
from tests.whole.asking import user

KEYS = "keys: {alice: a-key, bob: b-key, ops: {key: o-key, role: admin}}\n"
A, B, OPS = ({"Authorization": f"Bearer {key}"} for key in ("a-key", "b-key", "o-key"))
TEXT = f"plugins: {{cache: {{}}}}\nchains: {{chat: [cache], embeddings: [cache]}}\n{KEYS}"
CASES: list[tuple[str, dict[str, Any], dict[str, str], bool]] = [
    ("POST /api/cache/clear", {}, A, False),
    ("POST /api/cache/clear", {"caller": "alice"}, OPS, False),
    ("POST /api/cache/invalidate", {"model": "demo", "confirm": True}, A, False),
    ("POST /api/cache/invalidate", {"text": "number 3", "confirm": True}, OPS, False),
    ("DELETE /api/me/data", {}, A, False),
    ("POST /api/cache/clear", {}, B, True),
    ("POST /api/cache/invalidate", {"model": "demo"}, A, True),
    ("POST /api/cache/invalidate", {"text": "something else", "confirm": True}, A, True),
    ("POST /api/cache/invalidate", {"older_than": 1, "confirm": True}, A, True),
    ("POST /api/cache/clear-expired", {}, A, True),
]


async def stream(run: Running, number: int, **body: Any) -> Any:
    """The response to a streamed call, which has begun."""
    body = {"model": "demo", "stream": True, "messages": user(f"number {number}"), **body}
    response = await run.http.post(f"{run.url}/v1/chat/completions", json=body, headers=A)
    assert response.status == 200
    return response


async def test_an_answer_in_flight_during_an_invalidation_is_neither_cached_nor_shared(start: Start) -> None:
    async with start(TEXT, Simulator(delay=0.004)) as run:
        for number, (action, body, who, stays) in enumerate(CASES):
            first, other = await stream(run, number), await stream(run, number + 300)
            method, _, path = action.partition(" ")
            told = await run.http.request(method, f"{run.url}{path}", json=body, headers=who)
            assert told.status == 200, await told.text()
            second = await stream(run, number + 300)
            joined = ("shared", "hit") if stays else ("miss",)  # a hit if it has already finished
            assert second.headers["x-gemmapy-cache"] in joined, (action, body)
            for one in (first, other, second):
                assert b"[DONE]" in await one.read()
            await run.settled()
            third = await stream(run, number)
            assert third.headers["x-gemmapy-cache"] == ("hit" if stays else "miss"), (action, body)
            await third.read()
            await run.settled()
            assert (await stream(run, number)).headers["x-gemmapy-cache"] == "hit", "a later answer is cached"


async def test_embeddings_in_flight_during_an_invalidation_are_not_cached(start: Start) -> None:
    stall = Fault("stall", path="/api/embed", until=(go := asyncio.Event()))
    async with start(TEXT, Simulator(faults=[stall])) as run:

        async def embed() -> str:
            body = {"model": "demo-embed", "input": ["a", "b"]}
            response = await run.http.post(f"{run.url}/v1/embeddings", json=body, headers=A)
            return str(response.headers["x-gemmapy-cache"])

        first = asyncio.ensure_future(embed())
        await run.ollama.until(lambda: run.ollama.running == 1)
        await run.http.post(f"{run.url}/api/cache/clear", json={}, headers=A)
        go.set()
        assert [await first, await embed(), await embed()] == ["miss", "miss", "hit"]


@pytest.mark.parametrize("count", [1, MOST, MOST + 5])
def test_the_number_of_remembered_invalidations_is_bounded(count: int) -> None:
    clock = Watch()
    invalidations = Invalidations(clock)
    began = clock.monotonic()
    assert not invalidations.took(began, "other", bytes)
    for _ in range(count):
        clock.now += 1
        invalidations.add("cache:1:x:")
    assert invalidations.took(began, "cache:1:x:k", bytes) and len(invalidations.last) <= MOST
    assert invalidations.took(began, "cache:1:y:k", bytes) == (count > MOST), (
        "a forgotten invalidation counts as one that matches"
    )
    assert not invalidations.took(clock.monotonic() + 1, "cache:1:x:k", bytes)
