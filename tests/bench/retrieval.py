"""Measures retrieval through a running server: `python -m tests.bench.retrieval quality | search | ingest`.

quality: of each way of searching, how often the passage with the answer is found.
search: LanceDB asked directly and through the server, one at a time and 32 at once, and the memory of that.
ingest: chunks a second, with the demo's embeddings; and how long the event loop was held up meanwhile.
"""

# ruff: noqa: T201  (a command line prints, and starts servers)

from __future__ import annotations

import argparse
import asyncio
import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any, Final

import aiohttp
import numpy as np

from proxy.stores.lance import Lance
from proxy.stores.vectors import Row
from tests.bench.corpus import Question, county
from tests.bench.embedder import MODEL
from tests.servers import free_port
from tests.whole.commands import Serving, served

AT_ONCE: Final = 32
USUAL: Final = "usual"
WAYS: Final = (("vectors", 0.0), ("words", 1.0), ("half", 0.5), (USUAL, 0.7))
LEAST: Final = 0.87
"""hit@3 of what is usual, in chunks of 1,000 characters, with the demo's embeddings."""


def config(folder: Path, **settings: Any) -> str:
    told: dict[str, Any] = {
        "listen": {"port": 0},
        "log": {"level": "warning"},
        "upstreams": {"local": {"demo": {}}},
        "database": {"url": f"sqlite:///{folder}/x.db"},
        "stores": {"texts": {"lancedb": f"{folder}/lance"}},
        "plugins": {
            "documents": {"embed": "demo-embed", **settings},
            "cache": {},
            "lag": {"use": "tests.bench.lag:Lag"},
        },
        "chains": {"chat": ["documents"], "embeddings": ["cache"]},
    }
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in told.items())


@asynccontextmanager
async def server(
    folder: Path, embedder: str = "", **settings: Any
) -> AsyncIterator[tuple[aiohttp.ClientSession, Serving]]:
    file = folder / "proxy.yaml"
    text = config(folder, **settings)
    if embedder:
        text = text.replace('{"demo": {}}', json.dumps({"openai": embedder})).replace('["cache"]', "[]")
    file.write_text(text)
    async with served("serve", "--config", str(file)) as serving:
        connector = aiohttp.TCPConnector(limit=2 * AT_ONCE)
        async with aiohttp.ClientSession(serving.url, connector=connector) as http:
            yield http, serving


async def post(http: aiohttp.ClientSession, path: str, **body: Any) -> Any:
    async with http.post(f"/api/rag{path}", json=body) as response:
        told = await response.json()
        if response.status >= 400:
            raise RuntimeError(told["error"]["message"])
        return told


# --- quality ---------------------------------------------------------------------------------------


async def quality(folder: Path) -> None:
    articles, questions = county()
    for chunk in (500, 1000, 1500):
        place = folder / str(chunk)
        place.mkdir()
        async with server(place, chunk=chunk) as (http, _):
            turns = asyncio.Semaphore(8)

            async def add(title: str, content: str, http: Any = http, turns: Any = turns) -> None:
                async with turns:
                    await post(http, "/documents", title=title, content=content, wait=60)

            await asyncio.gather(*(add(one.title, one.content) for one in articles))
            print(f"\nchunks of {chunk} characters, {len(articles)} articles, {len(questions)} questions")
            print(f"{'':10} {'hit@1':>6} {'hit@3':>6} {'MRR':>6} {'nDCG':>6}")
            for name, words in WAYS:
                ranks = [await rank(http, one, words) for one in questions]
                found = figures(ranks)
                print(f"{name:10} " + " ".join(f"{figure:6.3f}" for figure in found))
                if (name, chunk) == (USUAL, 1000) and found[1] < LEAST:
                    raise SystemExit(f"hit@3 is below {LEAST}")


async def rank(http: aiohttp.ClientSession, one: Question, words: float) -> int:
    """Of the first passage that has the answer, from 1; 0 where none of ten has."""
    told = await post(http, "/search", query=one.text, top_k=10, words=words, merge=False)
    for place, found in enumerate(told["results"], 1):
        if found["title"] == one.title and one.answer in found["content"]:
            return place
    return 0


def figures(ranks: Sequence[int]) -> tuple[float, float, float, float]:
    """hit@1, hit@3, mean reciprocal rank, nDCG with one right passage."""
    count = len(ranks)
    hit1, hit3 = (sum(0 < rank <= most for rank in ranks) / count for most in (1, 3))
    mrr = sum(1 / rank for rank in ranks if rank) / count
    return hit1, hit3, mrr, sum(1 / math.log2(rank + 1) for rank in ranks if rank) / count


# --- speed -----------------------------------------------------------------------------------------


async def search(folder: Path, rows: int) -> None:
    async with server(folder) as (http, serving):
        made = await post(http, "/documents", title="First", content="The first text of all.", wait=30)
        collection, dimensions = made["collection"], 384
        dimensions = (await (await http.get(f"/api/rag/collections/{collection}")).json())["dimensions"]
        index = Lance(str(folder / "lance"))
        vectors = await filled(index, collection, made["document_id"], rows, dimensions)
        words = [f"word{number % 5000} word{number * 7 % 5000}" for number in range(200)]
        direct, together = list[float](), list[float]()
        for number, text in enumerate(words[:60]):
            begun = time.perf_counter()
            await asyncio.gather(index.nearest(collection, vectors[number], 50), index.matching(collection, text, 50))
            direct.append(time.perf_counter() - begun)
        before = memory(serving)
        alone = [await timed(http, text) for text in words[60:120]]
        for _ in range(4):
            together += await asyncio.gather(*(timed(http, text) for text in words[:AT_ONCE]))
        await index.aclose()
        print(f"\n{rows} rows of {dimensions} dimensions, milliseconds: p50 / p95")
        for name, times in (("LanceDB, both", direct), ("through HTTP", alone), (f"{AT_ONCE} at once", together)):
            ordered = sorted(times)
            print(f"{name:16} {median(ordered) * 1e3:7.1f} {ordered[int(len(ordered) * 0.95)] * 1e3:7.1f}")
        print(f"memory of the server grew by {(memory(serving) - before) / 1e6:.0f} MB")


async def timed(http: aiohttp.ClientSession, text: str) -> float:
    begun = time.perf_counter()
    await post(http, "/search", query=text, top_k=10)
    return time.perf_counter() - begun


async def filled(index: Lance, table: str, document: str, rows: int, dimensions: int) -> Any:
    """Rows of one document that is there: 200 centres, with words beside them.  Gives some of their vectors."""
    chance = np.random.default_rng(3)
    centres = chance.standard_normal((200, dimensions)).astype(np.float32)
    for at in range(0, rows, 10_000):
        many = min(10_000, rows - at)
        vectors = centres[chance.integers(0, 200, many)] + 0.7 * chance.standard_normal((many, dimensions))
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        numbers = chance.zipf(1.3, (many, 60)) % 5000
        texts = [" ".join(f"word{number}" for number in line) for line in numbers]
        about = "[0,10,0,0,[]]"
        await index.add(table, [Row(document, 1, 1 + at + n, text, about) for n, text in enumerate(texts)], vectors)
    begun = time.perf_counter()
    await index.tend(table)
    print(f"indexed in {time.perf_counter() - begun:.1f} s")
    return vectors


def memory(serving: Serving) -> int:
    """Bytes that the server has in memory."""
    fields = Path(f"/proc/{serving.process.pid}/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize()


@asynccontextmanager
async def instant() -> AsyncIterator[str]:
    """The URL of an embedder in a process of its own."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.bench.embedder", str(port))
    try:
        async with aiohttp.ClientSession() as http, asyncio.timeout(30):
            while True:
                with suppress(aiohttp.ClientError):
                    async with http.get(f"http://127.0.0.1:{port}/v1/models"):
                        break
                await asyncio.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        await process.wait()


async def ingest(folder: Path, megabytes: int) -> None:
    file = folder / "long.txt"
    written(file, megabytes)
    async with instant() as url, server(folder, url, embed=MODEL, read_timeout=120) as (http, serving):
        await (await http.get("/lag")).read()
        before, begun = memory(serving), time.perf_counter()
        form = aiohttp.FormData({"wait": "0"})
        with file.open("rb") as opened:
            form.add_field("file", opened, filename="long.txt")
            async with http.post("/api/rag/documents", data=form) as response:
                told = await response.json()
        sent = time.perf_counter() - begun
        peak, worst = await watched(http, serving, told["job_id"])
        taken = time.perf_counter() - begun
        lag = await (await http.get("/lag")).json()
        done = await (await http.get(f"/api/rag/documents/{told['document_id']}")).json()
    print(f"\n{megabytes} MB: {done['status']}, {done['chunks']} chunks in {taken:.1f} s,", end=" ")
    print(f"{done['chunks'] / (taken - sent):.0f} a second after {sent:.1f} s of sending and reading;")
    print(f"memory grew by {(peak - before) / 1e6:.0f} MB at most; /healthz answered within {worst * 1e3:.0f} ms;")
    print(
        f"the event loop was late by {lag['worst'] * 1e3:.0f} ms, and computed for {lag['busy'] * 1e3:.0f} ms at once"
    )


def written(file: Path, megabytes: int) -> None:
    with file.open("w") as out:
        for number in range(megabytes * 10_000):
            out.write(f"Sentence {number:9} of a long text says {number * 7 % 9973:5}, and has an end of its own.\n\n")


async def watched(http: aiohttp.ClientSession, serving: Serving, job: str) -> tuple[int, float]:
    """The most memory, and the longest wait for /healthz, until it has ended."""
    peak, worst = 0, 0.0
    while True:
        asked = time.perf_counter()
        await (await http.get("/healthz")).read()
        worst = max(worst, time.perf_counter() - asked)
        peak = max(peak, memory(serving))
        if (await (await http.get(f"/api/rag/jobs/{job}")).json())["status"] not in ("queued", "running"):
            return peak, worst
        await asyncio.sleep(0.05)


def main() -> int:
    whole = argparse.ArgumentParser("python -m tests.bench.retrieval", description=__doc__)
    whole.add_argument("part", choices=("quality", "search", "ingest"))
    whole.add_argument("--rows", type=int, default=100_000, help="of the search, by default 100,000")
    whole.add_argument("--megabytes", type=int, default=10, help="of the file, by default 10")
    told = whole.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = {
            "quality": lambda: quality(folder),
            "search": lambda: search(folder, told.rows),
            "ingest": lambda: ingest(folder, told.megabytes),
        }
        asyncio.run(parts[told.part]())
    return 0


if __name__ == "__main__":
    sys.exit(main())
