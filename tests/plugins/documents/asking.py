"""Helpers for the tests of documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.conftest import Running

KEYS = "keys: {alice: a-key, bob: b-key, ops: {key: o-key, role: admin}}\n"
A, B, OPS = ({"Authorization": f"Bearer {key}"} for key in ("a-key", "b-key", "o-key"))
TEXTS = {
    "Lanterns": "The lantern of Porthgwarra was lit in 1891. Its keeper was Mabel Quill, who painted it green.",
    "Orchards": "An orchard of quinces wants deep soil. Pears are grafted in March, before the sap rises.",
    "Clocks": "The clock of the town hall strikes thirteen at noon, because its second gear has a tooth too many.",
}


def config(url: str, folder: Path, more: str = "", **settings: Any) -> str:
    plugins = {"documents": {"embed": "demo-embed", **settings}, "cache": {}}
    chains = {"chat": ["documents", "cache"], "completions": [], "embeddings": ["cache"], "internal": []}
    stores = {"texts": {"lancedb": str(folder / "lance")}}
    told = {"database": {"url": url}, "plugins": plugins, "chains": chains, "stores": stores}
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in told.items()) + KEYS + more


async def ask(
    run: Running, method: str, path: str, who: dict[str, str] = A, status: int | None = None, /, **body: Any
) -> Any:
    """The JSON of the response, after checking its status if one is given."""
    said = body or None
    async with run.http.request(method, f"{run.url}/api/rag{path}", headers=who, json=said) as response:
        text = await response.text()
        assert response.status == status or status is None, text
        return json.loads(text)


async def add(run: Running, title: str, content: str, who: dict[str, str] = A, **more: Any) -> Any:
    told = await ask(run, "POST", "/documents", who, 201, title=title, content=content, wait=30, **more)
    assert told["status"] == "ready"
    return told


async def fill(run: Running, who: dict[str, str] = A, **more: Any) -> dict[str, str]:
    """Add the texts, and return their IDs by title."""
    return {title: (await add(run, title, text, who, **more))["document_id"] for title, text in TEXTS.items()}


async def titles(run: Running, query: str, who: dict[str, str] = A, **more: Any) -> list[str]:
    told = await ask(run, "POST", "/search", who, 200, query=query, **more)
    return [one["title"] for one in told["results"]]
