"""Measures retrieval through a running server: `python -m tests.bench.retrieval quality | search | ingest`.

quality: how often each way of searching finds the passage with the answer.
search: LanceDB called directly and through the server, one call at a time and 32 at once, and the memory this needs.
ingest: chunks per second, with embeddings that take no time; and how long the event loop was blocked meanwhile.
"""

# ruff: noqa: T201  (a command line prints, and starts servers)

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import aiohttp
import numpy as np

from proxy.stores.lance import Lance
from proxy.stores.vectors import Row
from tests.bench.embedder import MODEL, REAL
from tests.bench.quality import quality
from tests.bench.rag import AT_ONCE, DEMO, embedding, memory, post, server
from tests.bench.report import Found, table
from tests.whole.commands import Serving

RECALLED: Final = 50
"""Number of questions for measuring recall."""

# --- speed -----------------------------------------------------------------------------------------


async def search(folder: Path, rows: int) -> None:
    """Raises SystemExit if a bound is missed."""
    async with server(folder) as (http, serving):
        made = await post(http, "/documents", title="First", content="The first text of all.", wait=30)
        collection = made["collection"]
        dimensions = (await (await http.get(f"/api/rag/collections/{collection}")).json())["dimensions"]
        index = Lance(str(folder / "lance"))
        vectors = await filled(index, collection, made["document_id"], rows, dimensions)
        recall = await found(index, collection, vectors[:RECALLED])
        words = [f"word{number % 5000} word{number * 7 % 5000}" for number in range(200)]
        for text in words[120:140]:  # warm up both
            await directly(index, collection, await embedded(http, text), text)
            await timed(http, text)
        direct, alone, together = list[float](), list[float](), list[float]()
        for text in words[:60]:  # in turns with the same texts, so that other load affects both alike
            direct.append(await directly(index, collection, await embedded(http, text), text))
            alone.append(await timed(http, text))
        before = memory(serving)
        for _ in range(4):
            together += await asyncio.gather(*(timed(http, text) for text in words[:AT_ONCE]))
        grown = (memory(serving) - before) / 1e6
        await index.aclose()
    print(f"\n{rows} rows of {dimensions} dimensions, milliseconds: p50 / p95")
    told({"LanceDB, both": direct, "through HTTP": alone, f"{AT_ONCE} at once": together})
    measured = [
        Found("recall@10", recall, "", 0.98, least=True),
        Found("p50 through HTTP, of LanceDB's", median(alone) / median(direct), "times", 2),
        Found(f"memory of {AT_ONCE} at once", grown, "MB", 300),
    ]
    print(table(measured))
    if not all(one.met for one in measured):
        raise SystemExit(1)


def told(several: Mapping[str, Sequence[float]]) -> None:
    for name, times in several.items():
        ordered = sorted(times)
        print(f"{name:16} {median(ordered) * 1e3:7.1f} {ordered[int(len(ordered) * 0.95)] * 1e3:7.1f}")


async def directly(index: Lance, collection: str, vector: Any, text: str) -> float:
    begun = time.perf_counter()
    await asyncio.gather(index.nearest(collection, vector, 50), index.matching(collection, text, 50))
    return time.perf_counter() - begun


async def embedded(http: aiohttp.ClientSession, text: str) -> Any:
    """The server's embedding of a text: the time of a search depends on the question."""
    async with http.post("/v1/embeddings", json={"model": "demo-embed", "input": text}) as response:
        return np.array((await response.json())["data"][0]["embedding"], dtype=np.float32)


async def found(index: Lance, collection: str, vectors: Any) -> float:
    """Recall@10: how many of the ten nearest rows, found by an exhaustive search, the index finds.

    vectors: of rows; each is changed a little.
    """
    chance, shares = np.random.default_rng(4), list[float]()
    opened = await index.table(collection)
    if opened is None:
        raise SystemExit("there is no table")
    for row in vectors:
        asked = row + 0.03 * chance.standard_normal(len(row))
        asked = (asked / np.linalg.norm(asked)).astype(np.float32)
        query = opened.query().nearest_to(asked).distance_type("cosine").limit(10).bypass_vector_index()
        told = await query.select(["document", "position"]).to_arrow()
        exact = set(zip(told["document"].to_pylist(), told["position"].to_pylist(), strict=True))
        near = await index.nearest(collection, asked, 50)  # the number that a search requests
        shares.append(len(exact & {(one.row.document, one.row.position) for one in near[:10]}) / 10)
    return sum(shares) / len(shares)


async def timed(http: aiohttp.ClientSession, text: str) -> float:
    begun = time.perf_counter()
    await post(http, "/search", query=text, top_k=10)
    return time.perf_counter() - begun


async def filled(index: Lance, name: str, document: str, rows: int, dimensions: int) -> Any:
    """Add rows to an existing document: random vectors around 200 centres, with words.  Returns some of the vectors."""
    chance = np.random.default_rng(3)
    centres = chance.standard_normal((200, dimensions)).astype(np.float32)
    for at in range(0, rows, 10_000):
        many = min(10_000, rows - at)
        vectors = centres[chance.integers(0, 200, many)] + 0.7 * chance.standard_normal((many, dimensions))
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        numbers = chance.zipf(1.3, (many, 60)) % 5000
        texts = [" ".join(f"word{number}" for number in line) for line in numbers]
        about = "[0,10,0,0,[]]"
        await index.add(name, [Row(document, 1, 1 + at + n, text, about) for n, text in enumerate(texts)], vectors)
    begun = time.perf_counter()
    await index.tend(name)
    print(f"indexed in {time.perf_counter() - begun:.1f} s")
    return vectors


async def ingest(folder: Path, megabytes: int) -> None:
    file = folder / "long.txt"
    written(file, megabytes)
    async with (
        embedding(MODEL) as url,
        server(folder, url, embed=MODEL, read_timeout=120, max_file_bytes=1 << 30, max_characters=1 << 30) as (
            http,
            serving,
        ),
    ):
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
    print(f"the event loop was late by {lag['worst'] * 1e3:.0f} ms, {lag['held'] * 1e3:.0f} ms", end=" ")
    print(f"without waiting for a processor, and computed for {lag['busy'] * 1e3:.0f} ms at once")


def written(file: Path, megabytes: int) -> None:
    with file.open("w") as out:
        for number in range(megabytes * 10_000):
            out.write(f"Sentence {number:9} of a long text says {number * 7 % 9973:5}, and has an end of its own.\n\n")


async def watched(http: aiohttp.ClientSession, serving: Serving, job: str) -> tuple[int, float]:
    """The maximum memory, and the longest response time of /healthz, until the job has ended."""
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
    whole.add_argument("--embedder", choices=(DEMO, REAL), default=DEMO, help="of the quality, by default the demo's")
    whole.add_argument("--chunks", type=int, nargs="+", default=(500, 1000, 1500), help="characters, of the quality")
    said = whole.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = {
            "quality": lambda: quality(folder, said.embedder, said.chunks),
            "search": lambda: search(folder, said.rows),
            "ingest": lambda: ingest(folder, said.megabytes),
        }
        asyncio.run(parts[said.part]())
    return 0


if __name__ == "__main__":
    sys.exit(main())
