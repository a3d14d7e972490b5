"""Searches vector stores, for the endpoint and for the tool `file_search`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import orjson

from plugins.documents.filters import FOUND, TOGETHER, condition
from plugins.documents.payer import Payer
from plugins.documents.scores import Hit
from plugins.documents.search import Outcome, Search, SearchRequest
from plugins.documents.store import Item
from plugins.documents.vectorstores.contents import Contents
from plugins.documents.vectorstores.forms import Ranking
from plugins.documents.vectorstores.stores import VectorStore
from proxy.errors import BadCall
from proxy.types import JSON
from proxy.wire import read

DEEPEST: Final = 8


@dataclass(frozen=True, slots=True)
class Result:
    """A passage.  score: from 0 to 1.  file: the file's id, or the document's if it was not made of a file."""

    hit: Hit
    item: Item
    file: str
    name: str
    score: float

    @property
    def attributes(self) -> Mapping[str, JSON]:
        found: Mapping[str, JSON] = orjson.loads(self.item.metadata)
        return found


@dataclass(frozen=True, slots=True)
class StoreSearchRequest:
    """A search request.  filters: already validated."""

    payer: Payer
    stores: Sequence[VectorStore]
    queries: Sequence[str]
    top: int
    filters: JSON = None
    ranking: Ranking | None = None
    merge: bool = False


@dataclass(frozen=True, slots=True)
class Searching:
    """floor: the text score from which a passage is considered a match."""

    search: Search
    contents: Contents
    floor: float

    async def stores(self, caller: str, ids: Sequence[str], param: str) -> list[VectorStore]:
        """The vector stores with these ids, marked as used.

        Raises NotFound if the caller may not read one, BadCall if one has expired.
        """
        several = [await self.contents.stores.one(caller, id, param) for id in dict.fromkeys(ids)]
        for one in several:
            alive(one, param)
        await self.contents.stores.used(several)
        return several

    async def run(self, wanted: StoreSearchRequest) -> list[Result]:
        """The results of all queries together, best first."""
        ranking = wanted.ranking or Ranking()
        found: dict[tuple[str, int], Result] = {}
        for query in wanted.queries:
            ids = [one.id for one in wanted.stores]
            plain = ranking.ranker == "none"
            request = SearchRequest(
                wanted.payer,
                query,
                wanted.top,
                ids,
                wanted.filters,
                wanted.merge,
                words=ranking.words,
                rerank=not plain,
                closer=0 if plain else None,
            )
            outcome = await self.search.run(request)
            fit = self.fit(outcome.hits)
            for hit in outcome.hits:
                made = self.result(hit, outcome, fit)
                before = found.get((made.item.id, hit.row.position))
                if made.score >= ranking.score_threshold and (before is None or before.score < made.score):
                    found[made.item.id, hit.row.position] = made
        best = sorted(found.values(), key=lambda one: -one.score)[: wanted.top]
        names = await self.contents.filenames([one.item.id for one in best])
        return [replace(one, file=names[one.item.id][0], name=names[one.item.id][1]) if one.item.id in names else one
                for one in best]  # fmt: skip

    def fit(self, hits: Sequence[Hit]) -> float:
        """How well the best hit matches, from 0 to 1: by cosine, or by text score, where `floor` counts as a half."""
        cosine = max((hit.cosine for hit in hits), default=0.0)
        words = max((hit.words for hit in hits), default=0.0)
        by_words = words / (words + self.floor) if words > 0 else 0.0
        return min(1.0, max(0.0, cosine, by_words))

    def result(self, hit: Hit, outcome: Outcome, fit: float) -> Result:
        """A result whose score is comparable among searches: the hit's relative score times `fit`."""
        item = outcome.item(hit)
        return Result(hit, item, item.id, item.title, round(min(1.0, max(0.0, hit.score)) * fit, 4))


def alive(one: VectorStore, param: str = "vector_store_id") -> None:
    if one.expired:
        message = f"The vector store '{one.id}' has expired: it was not used for {one.days} days."
        raise BadCall(message, param=param, code="vector_store_expired")


def checked(given: JSON, at: str) -> JSON:
    """A valid filter in OpenAI's form.  Raises BadCall.

    The short form is refused, so that a misspelt filter is not taken for one on metadata with these names.
    """
    if given is None:
        return None
    typed(given, at, DEEPEST)
    condition(given, at)
    return given


def typed(given: JSON, at: str, depth: int) -> None:
    kinds = (*FOUND, *TOGETHER)
    kind = read.one_of(read.mapping(given, at).get("type"), f"{at}.type", kinds)
    if kind in TOGETHER:
        several = read.array(read.needed(given, "filters", f"{at}.filters"), f"{at}.filters")
        if not several:
            raise BadCall(f"Invalid '{at}.filters': it is empty.", param=f"{at}.filters", code="empty_array")
        for index, one in enumerate(several if depth else ()):
            typed(one, f"{at}.filters[{index}]", depth - 1)
        return
    for name in ("key", "value"):
        read.needed(given, name, f"{at}.{name}")
