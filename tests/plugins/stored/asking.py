"""Helpers for the tests of stored answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import openai

from tests.conftest import Running
from tests.whole.responding import checked

Json = dict[str, Any]
KEYS = "keys: {alice: a-key, bob: b-key}\n"
A, B = ({"Authorization": f"Bearer {key}"} for key in ("a-key", "b-key"))
HI: Json = {"model": "demo", "input": "hi"}


def config(url: str, chain: str = "stored, usage, cache, retry", more: str = "", **stored: Any) -> str:
    plugins: Json = {name: {} for name in chain.split(", ")} | {"stored": stored, "retry": {"wait": 0.001}}
    chains = {"chat": chain.split(", ")}
    return f"database: {{url: '{url}'}}\nplugins: {json.dumps(plugins)}\nchains: {json.dumps(chains)}\n{KEYS}{more}"


@asynccontextmanager
async def clients(run: Running) -> AsyncIterator[tuple[openai.AsyncOpenAI, openai.AsyncOpenAI]]:
    """SDK clients with Alice's and Bob's key."""
    async with run.client(api_key="a-key") as alice, run.client(api_key="b-key") as bob:
        yield alice, bob


async def ask(run: Running, method: str, path: str, who: Json = A, **body: Any) -> tuple[int, Json]:
    """The status and JSON document of a response."""
    response = await run.http.request(method, f"{run.url}{path}", headers=who, json=body or None)
    return response.status, await response.json()


async def respond(run: Running, who: Json = A, **body: Any) -> Json:
    status, document = await ask(run, "POST", "/v1/responses", who, **{**HI, **body})
    assert status == 200, document
    return checked(document)


async def streaming(run: Running, path: str = "", **body: Any) -> aiohttp.ClientResponse:
    """A stream that has begun: of a new response, or of an existing one at `path`."""
    if path:
        return await run.http.get(f"{run.url}{path}", headers=A)
    return await run.http.post(f"{run.url}/v1/responses", headers=A, json={**HI, "stream": True, **body})


async def ended(run: Running, id: str) -> Json:
    """A background response, once it has ended."""
    async with asyncio.timeout(20):
        while True:
            status, document = await ask(run, "GET", f"/v1/responses/{id}")
            assert status == 200, document
            if document["status"] not in ("queued", "in_progress"):
                return checked(document)
            await asyncio.sleep(0.02)
