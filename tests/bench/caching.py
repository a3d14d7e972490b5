"""Benchmarks of the cache."""

# ruff: noqa: T201  (a command line prints)

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import aiohttp

from tests.bench import asks
from tests.bench.parts import BOTH, Length, Part, Served, interleaved, ratio
from tests.bench.processes import Bench
from tests.bench.report import Found
from tests.bench.upstream import MODEL
from tests.servers import RedisServer, free_port

CACHED = f"cache, {BOTH.partition(', ')[2]}"
"""The chain of the packaged configuration without its timeouts."""
CALLS = 20_000
QUESTIONS = 2_000
AT_ONCE = 32


@contextmanager
def redis(folder: Path) -> Iterator[RedisServer]:
    server = RedisServer(folder, free_port())
    try:
        asyncio.run(server.start())
        yield server
    finally:
        server.kill()


def kept(store: str) -> str:
    """Configuration lines that put the cache into this store."""
    return f"stores: {{own: {{{store}}}}}\nplugins: {{cache: {{store: own}}, retry: {{}}}}\n"


def hits(bench: Bench, length: Length) -> Iterator[Found]:
    with ExitStack() as stack:
        server = stack.enter_context(redis(bench.folder))
        shared = kept(f"redis: '{server.url}', timeout: 1")
        servers = {
            "forwarder": Served(stack.enter_context(bench.forwarder()), asks.native()),
            "memory": Served(stack.enter_context(bench.proxy(CACHED)), asks.repeated()),
            "redis": Served(stack.enter_context(bench.proxy(CACHED, more=shared)), asks.repeated()),
        }
        samples = interleaved(bench, servers, length)
    yield Found("hits from memory / forwarder", ratio(samples, "memory", "forwarder"), "", 1.0, 1.3, least=True)
    yield Found("hits from Redis / forwarder", ratio(samples, "redis", "forwarder"), "", 0.6, least=True)


def misses(bench: Bench, length: Length) -> Iterator[Found]:
    with bench.proxy("retry") as without, bench.proxy(CACHED, more=kept("memory: {max_bytes: 20000000}")) as cached:
        servers = {"retry": Served(without, asks.openai()), CACHED: Served(cached, asks.openai())}
        samples = interleaved(bench, servers, length)
    yield Found("misses through the cache / without it", ratio(samples, CACHED, "retry"), "", 0.85, least=True)


def replays(bench: Bench, length: Length) -> Iterator[Found]:
    with bench.proxy(CACHED) as proxy:
        servers = {
            "a stream that is generated": Served(proxy, asks.openai(stream=True)),
            "its copy": Served(proxy, asks.repeated(stream=True)),
        }
        samples = interleaved(bench, servers, length)
    cost = {name: median(one.cost for one in taken) for name, taken in samples.items()}
    share = cost["its copy"] / cost["a stream that is generated"]
    yield Found("CPU of a replayed stream / a generated one", share, "", 0.5)


def repeats(bench: Bench, length: Length) -> Iterator[Found]:
    """Questions as frequent as words in a text; every request's JSON is formatted differently, every answer checked."""
    with bench.proxy(CACHED) as proxy:
        asked, hits, wrong = asyncio.run(asking(proxy.port))
    ideal = CALLS - len(set(asked))
    print(f"  {CALLS:,} calls, {len(set(asked)):,} questions: {hits:,} hits of {ideal:,}, {wrong} wrong answers")
    yield Found("hits / repeats", hits / ideal, "", 1.0, least=True)
    yield Found("wrong answers", wrong, "", 0)


async def asking(port: int) -> tuple[list[int], int, int]:
    chance = random.Random(7)
    weights = [1 / (rank + 1) for rank in range(QUESTIONS)]
    asked = chance.choices(range(QUESTIONS), weights, k=CALLS)
    todo, hits, wrong = iter(asked), 0, 0
    keys: dict[int, str] = {}

    async def caller(http: aiohttp.ClientSession) -> None:
        nonlocal hits, wrong
        for question in todo:
            body = spelled(question, chance)
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            async with http.post(url, data=body, headers={"Content-Type": "application/json"}) as response:
                await response.read()
                hits += response.headers["x-gemmapy-cache"] in ("hit", "shared")
                key = response.headers["x-gemmapy-cache-key"]
                wrong += response.status != 200 or keys.setdefault(question, key) != key

    async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as callers:
        for _ in range(AT_ONCE):
            callers.create_task(caller(http))
    return asked, hits, wrong + len(keys) - len(set(keys.values()))


def spelled(question: int, chance: random.Random) -> bytes:
    """The same question, with its fields in a random order and different whitespace."""
    fields = [
        ("model", MODEL),
        ("messages", [{"role": "user", "content": f"question {question}"}]),
        ("temperature", 0.5),
        ("seed", 1),
        ("stop", ["END", str(question)]),
    ]
    chance.shuffle(fields)
    return json.dumps(dict(fields), indent=chance.choice([None, 0, 2])).encode()


CACHING: Mapping[str, Part] = {"hits": hits, "misses": misses, "replays": replays, "repeats": repeats}
