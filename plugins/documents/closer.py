"""Reranks the best passages by their most similar pieces.

The vector of a passage represents all of its text, so the one sentence that answers a question has little weight in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from plugins.documents import scores
from plugins.documents.embedding import Embedder
from plugins.documents.payer import Payer
from plugins.documents.scores import Hit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

END: Final = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n+")
"""The end of a sentence."""
SHORT: Final = 20
"""Characters below which a text is joined with the next sentence."""
SENTENCES: Final = 24
"""Approximate maximum of sentences in a passage: if there are more, some are joined."""
PIECE: Final = 0.75
"""Weight of the best piece; the passage as a whole has the rest."""
WORDS: Final = 0.3
"""Weight of the text score among the reranked passages: it has already influenced which those are."""


@dataclass(frozen=True, slots=True)
class Closer:
    embedder: Embedder

    async def ranked(
        self, hits: Sequence[Hit], most: int, questions: Mapping[str, Vector], payer: Payer, least: float
    ) -> list[Hit]:
        """The first `most` hits reordered, followed by the others.  Raises ProxyError.

        hits: best first.  questions: the question's vector by model.
        least: upper bound of the text scores of everything that was not found.
        """
        some: list[Hit] = []
        for model, question in questions.items():
            some += await self.seen([hit for hit in hits[:most] if hit.model == model], question, model, payer)
        cosines = {place(hit): hit.cosine for hit in hits}
        best = [
            replace(hit, cosine=cosines[place(hit)])
            for hit in scores.ranked(some, dict.fromkeys(questions, WORDS), least)
        ]
        low = min((hit.score for hit in best), default=1.0)
        return best + [replace(hit, score=min(hit.score, low)) for hit in hits[most:]]

    async def seen(self, hits: Sequence[Hit], question: Vector, model: str, payer: Payer) -> list[Hit]:
        """The hits with a cosine that includes their best piece."""
        pieces = [[head(hit) + one for one in pieces_of(hit.content)] for hit in hits]
        texts = list(dict.fromkeys(one for several in pieces if len(several) > 1 for one in several))
        if not texts:
            return list(hits)
        vectors = await self.embedder.vectors(texts, model, payer)
        like = dict(zip(texts, (vectors @ question).tolist(), strict=True))
        best = [
            max((like.get(one, hit.cosine) for one in some), default=hit.cosine)
            for hit, some in zip(hits, pieces, strict=True)
        ]
        return [
            replace(hit, cosine=PIECE * one + (1 - PIECE) * hit.cosine) for hit, one in zip(hits, best, strict=True)
        ]


def place(hit: Hit) -> tuple[str, str, int]:
    return hit.collection, hit.row.document, hit.row.position


def head(hit: Hit) -> str:
    """The title and headings with which the passage was embedded."""
    return hit.row.text[: hit.about.head]


def pieces_of(text: str) -> list[str]:
    """All pairs of consecutive sentences."""
    said = [""]
    for one in END.split(text):
        if len(said[-1]) < max(SHORT, len(text) // SENTENCES):
            said[-1] = f"{said[-1]} {one}".strip()
        else:
            said.append(one)
    return [" ".join(pair) for pair in pairwise(said)] or said
