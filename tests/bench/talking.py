"""Benchmarks of conversations: whether a large number of them slows down access to one."""

# ruff: noqa: T201  (a command line prints)

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection
from statistics import median
from typing import Any, Final

from plugins.conversations.messages import StoredMessage
from plugins.conversations.store import Limits, Store
from plugins.conversations.tables import FEATURE
from proxy.host import Clock
from proxy.sql.database import Database
from proxy.types import Message
from tests.bench.parts import Length, Part
from tests.bench.processes import Bench
from tests.bench.report import Found
from tests.bench.upstream import MODEL
from tests.servers import installed_postgres

FEW: Final = 10
MANY: Final = 1000
MESSAGES: Final = 200
OWNER: Final = "anonymous"
LOOKS: Final = 50
"""Calls of each kind per server; few, so that the conversations hardly grow."""
WORDS: Final = "What was said here is of the usual length, neither a word nor a page, and differs by its number: "


@dataclass(frozen=True, slots=True)
class Lent:
    """The part of a host that a store needs."""

    database: Database
    clock: Clock


def talking(bench: Bench, length: Length) -> Iterator[Found]:
    """Opening and continuing one of a thousand conversations with two hundred messages, compared with one of ten."""
    yield from compared(bench, f"sqlite:///{bench.folder}/", "SQLite")
    with installed_postgres() as server:
        asyncio.run(server.start())
        for name in ("few", "many"):
            asyncio.run(server.create(name))
        yield from compared(bench, server.url("").rstrip("/") + "/", "PostgreSQL")


def compared(bench: Bench, base: str, name: str) -> Iterator[Found]:
    counts = {"few": FEW, "many": MANY}
    for one, count in counts.items():
        asyncio.run(filled(base + one, count))
    taken: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        ports = {one: stack.enter_context(bench.proxy("conversations", more=config(base + one))).port for one in counts}
        for turn in range(-5, LOOKS):  # the first ones are the warm-up
            for one in list(ports)[:: -1 if turn % 2 else 1]:
                for what, seconds in looked(ports[one], f"talk-{turn % counts[one] if turn >= 0 else 0}"):
                    taken.setdefault((what, one), []).extend([seconds] if turn >= 0 else [])
    for (what, one), times in taken.items():
        print(f"  {name:<12} {what:<9} one of {counts[one]:>5,}: {median(times) * 1000:6.2f} ms", flush=True)
    for what in ("opening", "continuing"):
        ratio = median(taken[what, "many"]) / median(taken[what, "few"])
        yield Found(f"{what} one of {MANY:,} conversations / of {FEW}, {name}", ratio, "", 1.2)


def config(url: str) -> str:
    window = "plugins: {conversations: {window: {tokens: 1000000}}}\n"
    return f"database: {{url: '{url}'}}\n{window}"


def looked(port: int, id: str) -> Iterator[tuple[str, float]]:
    yield "opening", asked(port, "GET", f"/api/conversations/{id}?limit={MESSAGES}")
    body = {"model": MODEL, "messages": [{"role": "user", "content": "And then?"}], "conversation": id}
    yield "continuing", asked(port, "POST", "/v1/chat/completions", body)


def asked(port: int, method: str, path: str, body: Mapping[str, Any] | None = None) -> float:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.connect()
    began = time.perf_counter()
    written = None if body is None else json.dumps(body)
    connection.request(method, path, written, {"Content-Type": "application/json"})
    response = connection.getresponse()
    told = response.read()
    seconds = time.perf_counter() - began
    connection.close()
    if response.status != 200:
        raise RuntimeError(f"{path}: {told.decode()[:500]}")
    return seconds


async def filled(url: str, count: int) -> None:
    database = Database(url, 2, 30)
    await database.migrate(FEATURE)
    store = Store(Lent(database, Clock()), Limits(MANY + 1, 10 * MESSAGES))  # type: ignore[arg-type]  # it needs no more of a host
    for number in range(count):
        saids = [
            StoredMessage(Message("assistant" if index % 2 else "user", f"{WORDS}{number} {index}"))
            for index in range(MESSAGES)
        ]
        await store.create(OWNER, f"talk-{number}", saids)
    await database.aclose()


TALKING: Mapping[str, Part] = {"conversations": talking}
