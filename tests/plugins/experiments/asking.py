"""Helpers for the tests of experiments."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import aiohttp

from plugins.experiments.assigning import subject, variant_of
from plugins.experiments.definition import Definition
from plugins.experiments.writer import Writer
from proxy.sql.database import DatabaseAway
from tests.conftest import Running
from tests.whole.asking import user, whole

A, B, OPS = ({"Authorization": f"Bearer {key}"} for key in ("a-key", "b-key", "o-key"))
KEYS = "keys: {ann: a-key, bob: {key: b-key, models: ['demo*']}, ops: {key: o-key, role: admin}}\n"
TONE: dict[str, Any] = {
    "variants": [{"name": "plain"}, {"name": "kind", "system": "Be kind.", "parameters": {"temperature": 0.5}}]
}


def config(url: str, experiments: Any = None, chain: str = "usage, experiments, templates", **settings: Any) -> str:
    plugins: dict[str, Any] = {name: {} for name in chain.split(", ")}
    plugins["experiments"] = {"experiments": experiments or {}, **settings}
    chains = {"chat": chain.split(", "), "embeddings": ["experiments"], "completions": ["experiments"]}
    return f"database: {{url: '{url}'}}\nplugins: {json.dumps(plugins)}\nchains: {json.dumps(chains)}\n{KEYS}"


async def ask(run: Running, method: str, path: str, who: dict[str, str] = OPS, **body: Any) -> aiohttp.ClientResponse:
    said: dict[str, Any] = {"json": body} if body else {}
    return await run.http.request(method, f"{run.url}/api/experiments{path}", headers=who, **said)


async def ok(run: Running, method: str, path: str, who: dict[str, str] = OPS, **body: Any) -> Any:
    return await whole(await ask(run, method, path, who, **body))


async def chat(run: Running, who: dict[str, str] = A, **body: Any) -> aiohttp.ClientResponse:
    told = {"model": "demo", "messages": user("hi"), **body}
    response = await run.http.post(f"{run.url}/v1/chat/completions", json=told, headers=who)
    await response.read()
    return response


def arm(response: aiohttp.ClientResponse) -> str | None:
    return response.headers.get("x-gemmapy-experiment")


def writer_of(run: Running) -> Writer:
    writer = run.server.services.state["experiments writer"]
    assert isinstance(writer, Writer)
    return writer


async def flushed(run: Running) -> None:
    with suppress(DatabaseAway):
        await writer_of(run).flush()


def user_of(told: dict[str, Any], variant: str, salt: str, caller: str = "ann", at: int = 0) -> str:
    """A user who is assigned this variant; a different one for each `at`."""
    definition = Definition.model_validate(told)
    names = (f"user-{number}" for number in range(10_000))
    mine = [name for name in names if variant_of(definition, salt, subject("user", caller, name).text).name == variant]
    return mine[at]
