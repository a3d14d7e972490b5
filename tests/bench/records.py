"""Benchmarks of the record of calls."""

# ruff: noqa: T201  (a command line prints)

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from http.client import HTTPConnection
from statistics import median
from typing import Final

from plugins.usage.retention import Retention
from plugins.usage.rows import CallRow, call_row
from plugins.usage.tables import FEATURE
from plugins.usage.writer import Batch, Writer
from proxy.announcements import CallEnded, Cost
from proxy.host import Clock
from proxy.sql.database import Database
from tests.bench import asks
from tests.bench.parts import Length, Part, Served, interleaved, ratio
from tests.bench.processes import Bench
from tests.bench.report import Found
from tests.bench.upstream import TOKENS
from tests.servers import installed_postgres

WHOLE: Final = "usage, limits, cache, fallback, retry"
RULED: Final = "the same, tokens a minute limited"
RULE: Final = "{requests_per_minute: 100000000, tokens_per_minute: 100000000000}"
ROWS: Final = 1_000_000
TOGETHER: Final = 20_000
USERS: Final = [f"user-{number}" for number in range(50)]
MODELS: Final = [f"model-{number}:7b" for number in range(10)]
ROUTES: Final = ("chat", "chat", "chat", "completions", "embeddings")
ERRORS: Final = ("", *[""] * 95, "upstream_cut", "upstream_timeout", "client_left", "queue_full")
DAYS: Final = 7
LOOKS: Final = 7
PATHS: Final = (
    "/api/metrics/dashboard?days=7",
    "/api/metrics/dashboard?days=7&user=user-7",
    "/api/metrics/timeseries?bucket=hour&days=7",
    "/api/metrics/timeseries?bucket=minute",
    "/api/metrics/models?days=7",
    "/api/metrics/endpoints?days=7",
    "/api/metrics/errors?days=7",
    "/api/costs/summary?period=month",
    "/api/costs/breakdown?period=month&by=user",
    "/api/admin/costs/all?period=month",
)


def chain(bench: Bench, length: Length) -> Iterator[Found]:
    """Every call is different, so the cache never hits."""
    with ExitStack() as stack:
        proxies = {
            "empty chain": bench.proxy(),
            "usage": bench.proxy("usage", more=kept_in(bench, "usage")),
            WHOLE: bench.proxy(WHOLE, more=kept_in(bench, "whole") + filled_in("{}")),
            RULED: bench.proxy(WHOLE, more=kept_in(bench, "ruled") + filled_in(f"{{limits: [{RULE}]}}")),
        }
        started = {name: stack.enter_context(proxy) for name, proxy in proxies.items()}
        samples = interleaved(bench, {name: Served(one, asks.openai()) for name, one in started.items()}, length)
        streams = {name: Served(started[name], asks.openai(stream=True)) for name in ("empty chain", WHOLE)}
        streamed = interleaved(bench, streams, length)
    print(f"  {RULED}: {ratio(samples, RULED, 'empty chain'):.3f} of the empty chain")
    print(f"  {WHOLE}, streams of {TOKENS} tokens: {ratio(streamed, WHOLE, 'empty chain'):.3f} of the empty chain")
    yield Found("usage / empty chain", ratio(samples, "usage", "empty chain"), "", 0.75, 0.85, least=True)
    yield Found(f"{WHOLE} / empty chain", ratio(samples, WHOLE, "empty chain"), "", 0.75, 0.85, least=True)


def kept_in(bench: Bench, name: str) -> str:
    return f"database: {{url: 'sqlite:///{bench.folder}/{name}.db'}}\n"


def filled_in(limits: str) -> str:
    """The settings of all plugins of the whole chain."""
    store = "stores: {own: {memory: {max_bytes: 20000000}}}\n"
    return f"{store}plugins: {{usage: {{}}, limits: {limits}, cache: {{store: own}}, fallback: {{}}, retry: {{}}}}\n"


def dashboards(bench: Bench, length: Length) -> Iterator[Found]:
    """A week of calls, a million, by fifty users of ten models; every view of them, several times."""
    yield from looked(bench, f"sqlite:///{bench.folder}/figures.db", "SQLite", 500)
    with installed_postgres() as server:
        asyncio.run(server.start())
        yield from looked(bench, asyncio.run(server.create("figures")), "PostgreSQL", 200)


def looked(bench: Bench, url: str, name: str, bound: float) -> Iterator[Found]:
    began = time.perf_counter()
    asyncio.run(filled(url))
    print(f"  {name}: {ROWS:,} rows written in {time.perf_counter() - began:.0f} s", flush=True)
    more = f"database: {{url: '{url}'}}\nplugins: {{usage: {{keep_days: null}}}}\n"
    with bench.proxy("usage", more=more) as proxy:
        taken = {path: median(one_look(proxy.port, path) for _ in range(LOOKS)) for path in PATHS}
    for path, seconds in taken.items():
        print(f"  {name:<12} {path:<50} {seconds * 1000:6.1f} ms", flush=True)
    yield Found(f"the slowest figures over a million calls, {name}", max(taken.values()) * 1000, "ms", bound)


def one_look(port: int, path: str) -> float:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    began = time.perf_counter()
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    seconds = time.perf_counter() - began
    connection.close()
    if response.status != 200:
        raise RuntimeError(f"{path}: {body.decode()[:500]}")
    return seconds


async def filled(url: str) -> None:
    database = Database(url, 2, 60)
    await database.migrate(FEATURE)
    writer, chance = Writer(database, Clock()), random.Random(7)
    now = time.time()
    for done in range(0, ROWS, TOGETHER):
        at = now - DAYS * 86_400 * (1 - done / ROWS)
        await writer.put(Batch([made(chance, at + 600 * chance.random()) for _ in range(TOGETHER)]))
    await Retention(None, database, Clock()).tidy()  # as a server that has run for a week would have done
    await database.aclose()


def made(chance: random.Random, at: float) -> CallRow:
    user, error = chance.choice(USERS), chance.choice(ERRORS)
    model, total = chance.choice(MODELS), int(chance.lognormvariate(20, 1))
    prompt, completion = chance.randrange(10, 4000), chance.randrange(1, 1000)
    cache = chance.choice(("hit", "miss", "miss", "miss"))
    ended = CallEnded(
        f"req_{chance.randrange(2**60):x}", at, user, f"{user}-key", chance.choice(ROUTES), True, model, model, "local",
        prompt, completion, 0, 0, (), 0, 0, total // 10, total // 2, total // 8, total, cache, 1, "",
        "" if error else "stop", error, Cost("USD", prompt * 150 + completion * 600, prompt * 150, 0, prompt * 2500),
    )  # fmt: skip
    return call_row(ended, model)


RECORDS: Mapping[str, Part] = {"records": chain, "figures": dashboards}
