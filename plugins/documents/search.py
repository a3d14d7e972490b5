"""Searches documents.  Access is checked in the database before the index is searched, and again for the results."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from sqlalchemy import select

from plugins.documents import scores
from plugins.documents.closer import Closer
from plugins.documents.collections import Collection, Collections
from plugins.documents.embedding import Embedder
from plugins.documents.filters import condition
from plugins.documents.payer import Payer
from plugins.documents.reranking import Reranker
from plugins.documents.scores import Hit
from plugins.documents.store import Item, Store
from plugins.documents.tables import ITEMS
from plugins.documents.weighing import SAMPLE, Weigher
from proxy.errors import BadCall, ProxyError
from proxy.stores.vectors import Vectors
from proxy.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Fusion: TypeAlias = Literal["scores", "ranks"]
CANDIDATES: Final = 50
"""Minimum chunks that vector search and text search each return per collection."""
DEEPEST: Final = 1000
"""Number of chunks from which on a search is not widened again, even if most of them are outdated."""
WIDEST: Final = 32
"""Maximum collections of a search that names none."""
FILTERED: Final = 10_000
"""Maximum documents that may match a filter."""
LONGEST: Final = 8000
"""Maximum characters of a question; the rest is not searched for."""


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """A search request.

    collections: ids or the caller's own names; if empty, all that the caller may read.
    words: weight of the text score, from 0 to 1; None for the default.
    fusion: `scores` or `ranks`; None for the default.  rerank: whether to use the reranking model, if configured.
    closer: passages to rerank by their pieces; None for the default, which is 0 if `words` is given.
    at: prefix of field names in errors, such as `rag.`.
    """

    payer: Payer
    question: str
    top: int
    collections: Sequence[str] = ()
    filter: JSON = None
    merge: bool = True
    words: float | None = None
    fusion: Fusion | None = None
    rerank: bool = True
    closer: int | None = None
    at: str = ""

    def needs(self, one: Collection) -> bool:
        """Whether the search must fail if this collection cannot be searched.

        Collections shared by others are skipped instead, unless they are named.
        """
        return bool(self.collections) or one.owner == self.caller

    @property
    def caller(self) -> str:
        """The caller whose collections are searched."""
        return self.payer.name


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a search.  hits: best first.  dropped: other hits, each with the reason why it was left out.

    fusion: how the two searches were merged.  unread: why reranking failed, or "".
    partial: whether collections shared by others were skipped.
    """

    hits: list[Hit] = field(default_factory=list)
    items: dict[str, Item] = field(default_factory=dict)
    dropped: list[tuple[Hit, str]] = field(default_factory=list)
    fusion: Fusion = "scores"
    unread: str = ""
    partial: bool = False

    def item(self, hit: Hit) -> Item:
        return self.items[hit.row.document]


@dataclass(frozen=True, slots=True)
class Found:
    """The hits in one collection.  least: upper bound of the text scores of the rest of it."""

    hits: list[Hit]
    least: float


@dataclass(frozen=True, slots=True)
class Search:
    """weight: of the text score, from 0 to 1; None lets the weigher decide.  fusion: the default.
    looked_at: the default number of passages to rerank by their pieces.
    """

    store: Store
    collections: Collections
    embedder: Embedder
    index: Vectors
    weight: float | None
    fusion: Fusion
    reranker: Reranker
    looked_at: int = 0
    weigher: Weigher = field(default_factory=Weigher)

    async def run(self, request: SearchRequest) -> Outcome:
        """Search.  Raises BadCall or NotFound for an invalid request, and the errors of the embedding calls."""
        chosen, partial = await self.scope(request)
        among = None if request.filter is None else await self.filtered(request, chosen)
        if not chosen or among == []:
            return Outcome(fusion=request.fusion or self.fusion, partial=partial)
        vectors = await self.questions(request, chosen)
        able = [one for one in chosen if request.needs(one) or len(vectors.get(one.model, ())) == one.dimensions]
        items, true, least = await self.found(request, able, vectors, among)
        weights, fusion = self.weights(request, vectors, true), request.fusion or self.fusion
        mixed = scores.by_rank(true, weights) if fusion == "ranks" else scores.ranked(true, weights, least)
        kept, doubled = scores.distinct(mixed)
        if most := self.closer(request):
            kept = await Closer(self.embedder).ranked(kept, most, vectors, request.payer, least)
        kept, unread = await self.read(request, kept)
        partial = partial or len(able) < len(chosen)
        return replace(settled(request, items, kept, doubled), fusion=fusion, unread=unread, partial=partial)

    async def found(
        self,
        request: SearchRequest,
        chosen: Sequence[Collection],
        vectors: Mapping[str, NDArray[np.float32]],
        among: Sequence[str] | None,
    ) -> tuple[dict[str, Item], list[Hit], float]:
        """The documents and hits of all collections, and an upper bound of the text scores of everything else.

        If most hits are not valid (see `known`), as while a long document is being indexed, the search is widened.
        """
        items: dict[str, Item] = {}
        found: dict[str, Found] = {}
        left, some = chosen, max(CANDIDATES, 3 * request.top)
        while left:
            looked = await asyncio.gather(*(self.one(one, vectors[one.model], request, among, some) for one in left))
            more, true = await self.known([hit for one in looked for hit in one.hits], {one.id for one in left})
            items |= more
            for one, seen in zip(left, looked, strict=True):
                found[one.id] = Found([hit for hit in true if hit.collection == one.id], seen.least)
            hidden = [
                one for one, seen in zip(left, looked, strict=True) if 2 * len(found[one.id].hits) < len(seen.hits)
            ]
            left, some = hidden if some < DEEPEST else [], 8 * some
        hits = [hit for one in chosen for hit in found[one.id].hits]
        return items, hits, min((one.least for one in found.values()), default=0.0)

    async def read(self, request: SearchRequest, kept: list[Hit]) -> tuple[list[Hit], str]:
        """The hits in the order of the reranking model; and the reason if that failed, else ""."""
        return await self.reranker.order(request.question, kept, request.payer) if request.rerank else (kept, "")

    def closer(self, request: SearchRequest) -> int:
        if request.closer is not None:
            return request.closer
        return self.looked_at if request.words is None else 0

    def fixed(self, request: SearchRequest) -> float | None:
        """The weight of the text score if it is configured or requested; else None."""
        return self.weight if request.words is None else request.words

    def weights(self, request: SearchRequest, models: Iterable[str], hits: Sequence[Hit]) -> Mapping[str, float]:
        fixed = self.fixed(request)
        return self.weigher.weights(models, request.question, hits) if fixed is None else dict.fromkeys(models, fixed)

    async def scope(self, request: SearchRequest) -> tuple[list[Collection], bool]:
        """The collections to search, all with vectors; and whether shared ones are left out, being too many."""
        field = f"{request.at}collections"
        if request.collections:
            names = dict.fromkeys(request.collections)
            several = [await self.collections.one(request.caller, name, field) for name in names]
            return [one for one in {one.id: one for one in several}.values() if one.dimensions], False
        several = await self.collections.filled(request.caller, WIDEST + 1)
        if len(several) <= WIDEST:
            return several, False
        own = [one for one in several if one.owner == request.caller]
        if len(own) > WIDEST:
            message = f"You have more than {WIDEST} collections with documents: name some of them in '{field}'."
            raise BadCall(message, param=field, code="too_many_collections")
        return own, True

    async def filtered(self, request: SearchRequest, chosen: Sequence[Collection]) -> list[str]:
        field = f"{request.at}filter"
        fits = (
            condition(request.filter, field)
            & ITEMS.c.collection.in_([one.id for one in chosen])
            & (ITEMS.c.version > 0)
        )
        async with self.store.database.reading() as connection:
            query = select(ITEMS.c.id).where(fits).limit(FILTERED + 1)
            ids = list((await connection.execute(query)).scalars())
        if len(ids) > FILTERED:
            message = (
                f"Invalid '{field}': more than {FILTERED} documents match it; put them into a collection of their own."
            )
            raise BadCall(message, param=field, code="filter_too_wide")
        return ids

    async def questions(self, request: SearchRequest, chosen: Sequence[Collection]) -> dict[str, NDArray[np.float32]]:
        """The question's vector by model, without models that fail and that only collections shared by others use."""
        models = list({one.model: one for one in chosen})
        needed = {one.model for one in chosen if request.needs(one)}
        found = await asyncio.gather(*(self.vector(request, model) for model in models), return_exceptions=True)
        vectors: dict[str, NDArray[np.float32]] = {}
        for model, vector in zip(models, found, strict=True):
            if not isinstance(vector, BaseException):
                vectors[model] = vector
            elif model in needed or not isinstance(vector, ProxyError):
                raise vector
        return vectors

    async def vector(self, request: SearchRequest, model: str) -> NDArray[np.float32]:
        """The question's vector.  The first call of a model also embeds the sample that measures it."""
        new = self.fixed(request) is None and model not in self.weigher.qualities
        texts = [request.question[:LONGEST], *(SAMPLE if new else ())]
        vectors = await self.embedder.vectors(texts, model, request.payer)
        if new:
            self.weigher.learn(model, vectors[1:])
        question: NDArray[np.float32] = vectors[0]
        return question

    async def one(
        self,
        collection: Collection,
        question: NDArray[np.float32],
        request: SearchRequest,
        among: Sequence[str] | None,
        some: int,
    ) -> Found:
        """Search one collection.  some: maximum chunks from each of the two searches."""
        if len(question) != collection.dimensions:
            message = f"The model '{collection.model}' gives other vectors than when '{collection.name}' was made."
            raise BadCall(message, param="collections", code="dimensions_changed")
        near, worded = await asyncio.gather(
            self.index.nearest(collection.place, question, some, among),
            self.index.matching(collection.place, request.question[:LONGEST], some, among),
        )
        hits = scores.together(collection.id, collection.model, question, near, worded)
        return Found(hits, worded[-1].score if len(worded) >= some else 0.0)

    async def known(self, hits: list[Hit], allowed: set[str]) -> tuple[dict[str, Item], list[Hit]]:
        """The documents of the hits, and the hits whose document, version and collection match the database."""
        items = await self.store.found({hit.row.document for hit in hits})
        true = [
            hit
            for hit in hits
            if (item := items.get(hit.row.document)) is not None
            and item.version == hit.row.version
            and item.collection == hit.collection
            and item.collection in allowed
        ]
        return items, true


def settled(request: SearchRequest, items: dict[str, Item], kept: list[Hit], doubled: list[Hit]) -> Outcome:
    best = scores.chosen(kept, request.top, request.merge)
    inside = {(hit.row.document, place) for hit in best for place in range(hit.row.position, hit.last + 1)}
    rest = [(hit, "not among the best") for hit in kept if (hit.row.document, hit.row.position) not in inside]
    return Outcome(best, items, [(hit, "says the same as a better one") for hit in doubled] + rest)
