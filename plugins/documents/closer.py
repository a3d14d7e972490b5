"""A closer look at the best passages: by those pieces of them that are most like the question.

The vector of a passage is one of all that it says, in which the sentence that answers a question weighs little.
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
"""Of a sentence."""
SHORT: Final = 20
"""Characters that are no sentence of their own."""
SENTENCES: Final = 24
"""Of a passage at most: where there are more they are taken together."""
PIECE: Final = 0.75
"""How much the best piece counts; the rest is the passage as a whole."""
WORDS: Final = 0.3
"""How much words count among what is looked at: they have had their say in what that is."""


@dataclass(frozen=True, slots=True)
class Closer:
    embedder: Embedder

    async def ranked(
        self, hits: Sequence[Hit], most: int, questions: Mapping[str, Vector], payer: Payer, least: float
    ) -> list[Hit]:
        """The first `most` in a better order, and the others behind them.  Raises ProxyError.

        hits: the best first.  questions: their vectors, by model.
        least: what the text scores of all that was not found are at most.
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
        """With a cosine that their best pieces count in."""
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
    """The title and headings that the passage was embedded with."""
    return hit.row.text[: hit.about.head]


def pieces_of(text: str) -> list[str]:
    """Every two sentences that follow each other."""
    said = [""]
    for one in END.split(text):
        if len(said[-1]) < max(SHORT, len(text) // SENTENCES):
            said[-1] = f"{said[-1]} {one}".strip()
        else:
            said.append(one)
    return [" ".join(pair) for pair in pairwise(said)] or said
