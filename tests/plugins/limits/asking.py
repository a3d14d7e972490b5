"""Helpers for the tests of limits."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.conftest import Running
from tests.whole.asking import user

KEYS = "keys: {ann: ann-key, bob: bob-key, root: {key: root-key, role: admin}}\n"


def limits(*rules: str, store: str = "", more: str = "", chain: str = "limits") -> str:
    """A configuration with these rules, in YAML's flow style."""
    place = f"stores: {{shared: {{redis: '{store}', timeout: 30}}}}\n" if store else ""
    named = "store: shared, " if store else ""
    return (
        f"{place}plugins: {{limits: {{{named}{more}limits: [{', '.join(rules)}]}}, cache: {{}}}}\n"
        f"chains: {{chat: [{chain}], completions: [{chain}], embeddings: [{chain}]}}\n"
    )


def key(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}-key"}


async def chat(run: Running, who: str = "", **body: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
    """The status, body and headers of one call, read to its end."""
    asked = {"model": "demo", "messages": user("hi"), **body}
    headers = key(who) if who else {}
    async with run.http.post(f"{run.url}/v1/chat/completions", json=asked, headers=headers) as response:
        told = {name.lower(): value for name, value in response.headers.items()}
        if response.content_type == "application/json":
            return response.status, await response.json(), told
        return response.status, {"text": await response.text()}, told


async def statuses(run: Running, count: int, who: str = "", **body: Any) -> list[int]:
    return [(await chat(run, who, **body))[0] for _ in range(count)]


async def limits_shown(run: Running, who: str = "", query: str = "") -> list[dict[str, Any]]:
    async with run.http.get(f"{run.url}/api/limits{query}", headers=key(who) if who else {}) as response:
        assert response.status == 200, await response.text()
        data: list[dict[str, Any]] = (await response.json())["data"]
        return data


async def used(run: Running, quantity: str, index: int = 0) -> Any:
    return (await limits_shown(run))[index]["limits"][quantity]["used"]


async def until_used(run: Running, quantity: str, amount: Any) -> None:
    """Wait until this much is used: a call is settled shortly after its answer was read, or once the store answers."""
    async with asyncio.timeout(30):
        while True:
            async with run.http.get(f"{run.url}/api/limits") as response:
                body = await response.json()
            if response.status == 200 and body["data"][0]["limits"][quantity]["used"] == amount:
                return
            await asyncio.sleep(0.005)
