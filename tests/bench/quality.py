"""How often each way of searching finds the passage with the answer."""

# ruff: noqa: T201  (a command line prints)

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp

from proxy.commands.ranks import figures
from tests.bench.corpus import Question, county
from tests.bench.embedder import REAL
from tests.bench.rag import DEMO, embedding, post, server

USUAL: Final = "usual"
CLOSER: Final = "closer"
WAYS: Final[dict[str, dict[str, Any]]] = {
    "vectors": {"words": 0},
    "words": {"words": 1},
    "half": {"words": 0.5},
    USUAL: {},
    CLOSER: {"closer": 12},
}
LEAST: Final = {DEMO: 0.87, REAL: 0.92}
"""Minimum hit@3 with chunks of 1,000 characters and default settings.  The demo's embeddings do not recognise
paraphrases, so only questions in the text's words count; with a real model, all do."""
TOP: Final = 10
Kind = TypeVar("Kind")


async def quality(folder: Path, kind: str, chunks: Sequence[int]) -> None:
    missed = []
    async with embedding(kind) as url:
        for chunk in chunks:
            place = folder / str(chunk)
            place.mkdir()
            model = {"embed": kind} if url else {}
            async with server(place, url, chunk=chunk, **model) as (http, _):
                found = await asked(http, chunk)
            hit = found[USUAL][kind == DEMO]
            if chunk == 1000 and hit < LEAST[kind]:
                missed.append(f"hit@3 is {hit:.3f}, below {LEAST[kind]}")
    if missed:
        raise SystemExit("\n".join(missed))


async def asked(http: aiohttp.ClientSession, chunk: int) -> dict[str, tuple[float, float]]:
    """Print the figures; returns hit@3 by way of searching: for all questions, and for those in the text's words."""
    articles, questions = county()
    await together(8, (post(http, "/documents", title=one.title, content=one.content, wait=60) for one in articles))
    print(f"\nchunks of {chunk} characters, {len(articles)} articles, {len(questions)} questions")
    print(f"{'':10} {'hit@1':>6} {'hit@3':>6} {'MRR':>6} {'nDCG':>6}   hit@3 in the text's words, in others")
    found = {}
    for name, more in WAYS.items():
        ranks = await together(4, (rank(http, one, more) for one in questions))
        every, worded, other = (
            figures([rank for rank, one in zip(ranks, questions, strict=True) if one.worded in kinds], TOP)
            for kinds in ((True, False), (True,), (False,))
        )
        told = (every.hit(1), every.hit(3), every.mrr, every.ndcg, worded.hit(3), other.hit(3))
        print(f"{name:10} " + " ".join(f"{figure:6.3f}" for figure in told), flush=True)
        found[name] = every.hit(3), worded.hit(3)
    return found


async def together(most: int, several: Iterable[Awaitable[Kind]]) -> list[Kind]:
    """The results in order; at most `most` run at once."""
    turns = asyncio.Semaphore(most)

    async def one(work: Awaitable[Kind]) -> Kind:
        async with turns:
            return await work

    return await asyncio.gather(*map(one, several))


async def rank(http: aiohttp.ClientSession, one: Question, more: dict[str, Any]) -> int:
    """The rank from 1 of the first passage that has the answer; 0 if none of the first ten has."""
    told = await post(http, "/search", query=one.text, top_k=TOP, merge=False, **more)
    for place, found in enumerate(told["results"], 1):
        if found["title"] == one.title and one.answer in found["content"]:
            return place
    return 0
