"""Helpers for the tests of files."""

from __future__ import annotations

import io
import json
from typing import Any

import aiohttp

from plugins.files.store import Store
from tests.conftest import Running

KEYS = "keys: {alice: a-key, bob: b-key, ops: {key: o-key, role: admin}}\n"
A, B, OPS = ({"Authorization": f"Bearer {key}"} for key in ("a-key", "b-key", "o-key"))


def config(url: str, **settings: Any) -> str:
    told = {"database": {"url": url}, "plugins": {"files": settings}, "chains": {"chat": []}}
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in told.items()) + KEYS


def store_of(run: Running) -> Store:
    (found,) = [
        route.handle.__self__.store  # type: ignore[attr-defined]
        for route in run.server.live.pipeline.router.routes
        if (route.method, route.path) == ("POST", "/v1/files")
    ]
    assert isinstance(found, Store)
    return found


def form(data: bytes | None, name: str = "a.txt", **fields: str) -> aiohttp.FormData:
    made = aiohttp.FormData(quote_fields=False, default_to_multipart=True)
    for field, value in fields.items():
        made.add_field(field, value)
    if data is not None:
        made.add_field("file", io.BytesIO(data), filename=name)
    return made


async def send(
    run: Running, data: aiohttp.FormData, who: dict[str, str] = A, status: int | None = 200
) -> dict[str, Any]:
    async with run.http.post(f"{run.url}/v1/files", data=data, headers=who) as response:
        told: dict[str, Any] = await response.json()
        assert response.status == status or status is None, told
        return told


async def ask(
    run: Running, method: str, path: str, who: dict[str, str] = A, status: int | None = 200
) -> dict[str, Any]:
    async with run.http.request(method, f"{run.url}{path}", headers=who) as response:
        told: dict[str, Any] = json.loads(await response.text())
        assert response.status == status or status is None, told
        return told
