"""Helpers for the tests of vector stores."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.conftest import Running
from tests.plugins.documents.asking import A
from tests.plugins.documents.asking import config as documents
from tests.plugins.files.asking import form, send

LANTERNS = b"The lantern of Porthgwarra was lit in 1891. Its keeper was Mabel Quill, who painted it green."
ORCHARDS = b"An orchard of quinces wants deep soil. Pears are grafted in March, before the sap rises."


def config(url: str, folder: Path, chain: tuple[str, ...] = ("documents", "cache"), **settings: Any) -> str:
    """A configuration with files, and with these plugins in the chain."""
    text = documents(url, folder, **settings)
    plugins = json.loads(text.split("plugins: ")[1].split("\n")[0]) | {"files": {}} | {name: {} for name in chain
              if name not in ("documents", "cache")}  # fmt: skip
    chains = {"chat": list(chain), "embeddings": ["cache"], "internal": []}
    lines = [line for line in text.splitlines() if not line.startswith(("plugins:", "chains:"))]
    return "\n".join([*lines, f"plugins: {json.dumps(plugins)}", f"chains: {json.dumps(chains)}", ""])


async def call(
    run: Running, method: str, path: str, who: dict[str, str] = A, status: int | None = 200, /, **body: Any
) -> Any:
    async with run.http.request(method, f"{run.url}/v1{path}", headers=who, json=body or None) as response:
        text = await response.text()
        assert response.status == status or status is None, text
        return json.loads(text)


async def upload(run: Running, data: bytes, name: str = "a.txt", who: dict[str, str] = A) -> str:
    id: str = (await send(run, form(data, name, purpose="user_data"), who))["id"]
    return id


async def settled(run: Running, path: str, who: dict[str, str] = A) -> Any:
    """The object at a path, once it is no longer in progress."""
    async with asyncio.timeout(40):
        while (told := await call(run, "GET", path, who))["status"] == "in_progress":  # noqa: ASYNC110  (there is no event)
            await asyncio.sleep(0.02)
    return told


async def filled(run: Running, who: dict[str, str] = A, **more: Any) -> tuple[str, str]:
    """The IDs of a new vector store and of the file in it."""
    file = await upload(run, LANTERNS, "lanterns.txt", who)
    store = (await call(run, "POST", "/vector_stores", who, 200, name="lights", file_ids=[file], **more))["id"]
    told = await settled(run, f"/vector_stores/{store}/files/{file}", who)
    assert told["status"] == "completed", told
    return store, file
