"""Helpers for the tests of the record of calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from typing import Any

from sqlalchemy import select

from plugins.usage.tables import CALLS
from plugins.usage.writer import Writer
from proxy.sql.database import Database, DatabaseAway
from tests.conftest import ASK, Running

KEYS = "keys: {alice: a-key, bob: b-key, ops: {key: o-key, role: admin}}\n"
A, B, OPS = ({"Authorization": f"Bearer {key}"} for key in ("a-key", "b-key", "o-key"))
PRICES = (
    "costs: {prices: {models: {'demo*': {input: 0.15, output: 0.6, cached: 0.075}}, "
    "cloud: {'*': {input: 2.5, output: 10, like: gpt-4o}}}, "
    "energy: {per_kwh: 0.3, watts: {local: {idle: 30, busy: 250.5}}}}\n"
)


def config(url: str, more: str = "", chain: str = "usage, cache, fallback, retry", **usage: Any) -> str:
    plugins: dict[str, Any] = {name: {} for name in chain.split(", ")} | {"usage": usage, "retry": {"wait": 0.001}}
    chains = {route: chain.split(", ") for route in ("chat", "completions", "embeddings", "internal")}
    own = "" if "costs:" in more else PRICES
    head = f"database: {{url: '{url}'}}\nplugins: {json.dumps(plugins)}\nchains: {json.dumps(chains)}\n"
    return head + KEYS + own + more


async def chat(run: Running, who: dict[str, str] = A, **body: Any) -> str:
    """Make a chat call, and return its request ID, whatever the outcome."""
    response = await run.http.post(f"{run.url}/v1/chat/completions", json={**ASK, **body}, headers=who)
    await response.read()
    return str(response.headers["x-request-id"])


async def get(run: Running, path: str, who: dict[str, str] = OPS, status: int = 200) -> Any:
    """The response's JSON, with exact decimals."""
    response = await run.http.get(f"{run.url}{path}", headers=who)
    text = await response.text()
    assert response.status == status, text
    return json.loads(text, parse_float=Decimal)


def writer_of(run: Running) -> Writer:
    writer = run.server.services.state["usage writer"]
    assert isinstance(writer, Writer)
    return writer


async def written(run: Running, count: int | None = None) -> list[dict[str, Any]]:
    """The rows of calls, once everything is written and there are this many."""
    async with asyncio.timeout(30):
        while True:
            with suppress(DatabaseAway):
                await writer_of(run).flush()
                found = await rows(writer_of(run).database, CALLS)
                if len(found) >= (count or 0):
                    return found
            await asyncio.sleep(0.01)


async def rows(database: Database, table: Any = CALLS) -> list[dict[str, Any]]:
    async with database.reading() as connection:
        found = (await connection.execute(select(table).order_by(table.c.id))).mappings().all()
    return [dict(one) for one in found]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(40):
        while not true():  # noqa: ASYNC110  (there is no event)
            await asyncio.sleep(0.005)
