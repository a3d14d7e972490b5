"""Merges the results of vector search and text search into one ranking; pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import orjson

from proxy.stores.vectors import Found, Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


FLAT: Final = 60
"""The constant of reciprocal rank fusion: the higher, the less the first ranks differ."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage: one chunk, or several consecutive ones.

    last: position of its last chunk.  cosine: to the question.  words: BM25 score, 0 if no word matches.
    near, worded: its rank in vector search and text search, from 1; None if that did not find it.
    score: from 0 to 1, comparable only within one search.  share: weight of the text score in it.
    grade: from a reranking model, from 0 to 10; None without one.
    """

    row: Row
    collection: str
    model: str
    cosine: float
    words: float = 0.0
    near: int | None = None
    worded: int | None = None
    score: float = 0.0
    share: float = 0.0
    last: int = 0
    grade: int | None = None

    @property
    def about(self) -> About:
        return About(*orjson.loads(self.row.about))

    @property
    def content(self) -> str:
        return self.row.text[self.about.head :]


@dataclass(frozen=True, slots=True)
class About:
    """About a chunk.  start, end: offsets in the document.  head: characters before it in the row's text."""

    start: int
    end: int
    head: int
    page: int
    headings: Sequence[str]


def together(
    collection: str, model: str, question: NDArray[np.float32], near: Iterable[Found], worded: Iterable[Found]
) -> list[Hit]:
    """The results of both searches in one collection, without duplicates, all with their cosine."""
    hits: dict[tuple[str, int, int], Hit] = {}
    for rank, one in enumerate(near, 1):
        hits.setdefault(key(one), Hit(one.row, collection, model, one.score, near=rank, last=one.row.position))
    for rank, one in enumerate(worded, 1):
        before = hits.get(key(one)) or Hit(
            one.row, collection, model, float(question @ one.vector), last=one.row.position
        )
        if before.worded is None:
            hits[key(one)] = replace(before, words=one.score, worded=rank)
    return list(hits.values())


def key(found: Found) -> tuple[str, int, int]:
    return found.row.document, found.row.version, found.row.position


def ranked(hits: Sequence[Hit], weights: Mapping[str, float], least: float = 0.0) -> list[Hit]:
    """The hits by weighted score, best first.

    weights: of the text score, from 0 to 1, by model; cosines have the rest.
    least: upper bound of the text scores of everything that was not found; 0 if everything was.

    Both scores are scaled to 0 to 1 over the hits, to make them comparable; cosines per model, because those of
    different models are not.
    """
    cosines: dict[str, list[float]] = {}
    for hit in hits:
        cosines.setdefault(hit.model, []).append(hit.cosine)
    bounds = {model: (min(several), max(several)) for model, several in cosines.items()}
    most = max((hit.words for hit in hits), default=0.0)
    scored = []
    for hit in hits:
        low, high = bounds[hit.model]
        by_vector = (hit.cosine - low) / (high - low) if high > low else 1.0
        by_words = max(0.0, hit.words - least) / (most - least) if most > least else float(hit.words > 0)
        share = weights[hit.model] if most > 0 else 0.0
        scored.append(replace(hit, score=share * by_words + (1 - share) * by_vector, share=share))
    return sorted(scored, key=lambda hit: (-hit.score, hit.row.document, hit.row.position))


def by_rank(hits: Sequence[Hit], weights: Mapping[str, float]) -> list[Hit]:
    """The hits by their ranks, best first: the weighted sum of 1 / (60 + rank) in both searches.

    Source: reciprocal rank fusion (Cormack, Clarke, Buettcher, 2009), here weighted, and scaled so that a hit that is
    first in both scores 1.
    """
    near: dict[tuple[str, str, int], int] = {}
    for model in {hit.model for hit in hits}:
        ordered = sorted((hit for hit in hits if hit.model == model and hit.near), key=lambda hit: -hit.cosine)
        near |= {(hit.collection, hit.row.document, hit.row.position): rank for rank, hit in enumerate(ordered, 1)}
    worded = {
        (hit.collection, hit.row.document, hit.row.position): rank
        for rank, hit in enumerate(sorted((one for one in hits if one.worded), key=lambda one: -one.words), 1)
    }
    scored = []
    for hit in hits:
        which = (hit.collection, hit.row.document, hit.row.position)
        by_vector, by_words, share = share_of(near.get(which)), share_of(worded.get(which)), weights[hit.model]
        scored.append(replace(hit, score=share * by_words + (1 - share) * by_vector, share=share))
    return sorted(scored, key=lambda hit: (-hit.score, hit.row.document, hit.row.position))


def share_of(rank: int | None) -> float:
    return 0.0 if rank is None else (FLAT + 1) / (FLAT + rank)


def distinct(hits: Iterable[Hit]) -> tuple[list[Hit], list[Hit]]:
    """The hits without exact duplicates of better ones; and these duplicates."""
    seen: set[str] = set()
    kept: list[Hit] = []
    dropped: list[Hit] = []
    for hit in hits:
        said = " ".join(hit.content.split()).lower()
        (dropped if said in seen else kept).append(hit)
        seen.add(said)
    return kept, dropped


def chosen(hits: Iterable[Hit], top: int, merge: bool = True) -> list[Hit]:
    """The best `top` passages.  merge: whether consecutive chunks of a document become one passage."""
    passages: list[Hit] = []
    for hit in hits:
        beside = next((place for place, one in enumerate(passages) if merge and beside_each_other(one, hit)), None)
        if beside is not None:
            passages[beside] = joined(passages[beside], hit)
        elif len(passages) < top:
            passages.append(hit)
        else:
            break
    return passages


def beside_each_other(one: Hit, other: Hit) -> bool:
    same = one.row[:2] == other.row[:2]
    return same and (one.last + 1 == other.row.position or other.last + 1 == one.row.position)


def joined(better: Hit, other: Hit) -> Hit:
    """Two passages merged, with the better one's scores."""
    first, second = (better, other) if better.row.position < other.row.position else (other, better)
    one, two = first.about, second.about
    between = "" if two.start < one.end else " " if two.start - one.end <= 1 else "\n\n"
    text = first.row.text + between + second.content[max(0, one.end - two.start) :]
    told = orjson.dumps([one.start, two.end, one.head, one.page, list(one.headings)]).decode()
    return replace(better, row=first.row._replace(text=text, about=told), last=second.last)
