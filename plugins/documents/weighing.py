"""Chooses the weight of the text score for a question, if none is configured; pure functions.

Each of the two scores counts by how much it can distinguish.  For the text score, that is how much of the question the
best text contains: little if the question uses other words, and those in common, such as a name, occur in many texts.
For the cosines, it is how far they are spread: little if no hit is clearly nearer than the rest.  What is a wide spread
depends on the model, and is measured with a few sentences; with a model that does not capture meaning, the text score
keeps most of the weight.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from typing import TYPE_CHECKING, Final

from plugins.documents.scores import Hit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

QUESTIONS: Final = (
    "How old is the castle?",
    "What does the doctor earn?",
    "Who won the race?",
    "Why was the train late?",
    "Where can I park my car?",
    "How do I stop the program?",
    "What do cats eat?",
    "Is the shop open on Sunday?",
)
ANSWERS: Final = (
    "The fortress was built in 1240.",
    "The physician's salary is ninety thousand a year.",
    "The fastest runner of the day was Ann Reed.",
    "A delay on the railway was caused by snow on the line.",
    "Vehicles may be left in the garage behind the hotel.",
    "To quit the software, press the escape key.",
    "Felines feed on mice and birds.",
    "The store is closed at the weekend.",
)
"""The answers to QUESTIONS, in the same order, which share no content words with them."""
SAMPLE: Final = (*QUESTIONS, *ANSWERS)
CHANCE: Final = 2.0
SURE: Final = 4.0
"""Limits of trust, in standard deviations by which answers are more similar to their own questions than to others.
Measured: -0.2 for hashed words, 1.3 for the mean of word vectors, 7.2 for all-MiniLM-L6-v2."""
KEPT: Final = 256
"""Maximum number of models whose measurement is remembered."""
POOR: Final = 0.7
"""Weight of the text score with a model that does not capture meaning."""
LOOKED_AT: Final = 100
LONGEST: Final = 32
"""Limits for weighing words: LOOKED_AT texts and LONGEST words, since questions can be long and results many."""
WORD: Final = re.compile(r"\w+")
STEM: Final = 5
"""Leading characters by which words are compared, to ignore their endings."""
ASKING: Final = frozenset(("what", "when", "where", "which", "who", "whom", "whose", "why", "how", "does", "did"))
"""Question words, which even a good answer does not contain."""


@dataclass(frozen=True, slots=True)
class ModelQuality:
    """The measurement of a model.  trust: how well it captures meaning, from 0 to 1.

    apart: mean difference between the cosine of a question with its answer and with an unrelated text.
    """

    trust: float
    apart: float


@dataclass(frozen=True, slots=True)
class Weigher:
    """qualities: the measurements by model."""

    qualities: OrderedDict[str, ModelQuality] = field(default_factory=OrderedDict)

    def learn(self, model: str, vectors: NDArray[np.float32]) -> None:
        """Measure a model.  vectors: of SAMPLE, shape (texts, dimensions), unit length."""
        self.qualities[model] = model_quality(vectors)
        while len(self.qualities) > KEPT:
            self.qualities.popitem(last=False)

    def weights(self, models: Iterable[str], question: str, hits: Sequence[Hit]) -> Mapping[str, float]:
        """The weight of the text score by model, from 0 to 1, for a question and its hits."""
        seen = {model: self.qualities.get(model, ModelQuality(0.0, 1.0)) for model in models}
        covered = coverage(question, hits) if any(one.trust for one in seen.values()) else 0.0
        return {
            model: weight(one, covered, [hit.cosine for hit in hits if hit.model == model])
            for model, one in seen.items()
        }


def model_quality(vectors: NDArray[np.float32]) -> ModelQuality:
    import numpy as np

    like = vectors[: len(QUESTIONS)] @ vectors[len(QUESTIONS) :].T
    own = np.eye(len(like), dtype=bool)
    apart = float(like[own].mean() - like[~own].mean())
    deviations = apart / (float(like[~own].std()) or 1.0)
    return ModelQuality(min(1.0, max(0.0, (deviations - CHANCE) / (SURE - CHANCE))), apart)


def weight(one: ModelQuality, covered: float, cosines: Sequence[float]) -> float:
    if not one.trust or not cosines:
        return POOR
    spread = (max(cosines) - min(cosines)) / one.apart
    told = covered / (covered + spread) if covered else 0.0
    return (1 - one.trust) * POOR + one.trust * told


def coverage(question: str, hits: Sequence[Hit]) -> float:
    """The share of the question's words that the best text by text score contains, from 0 to 1, weighted by rarity.

    Rarity is measured among the hits: a word that all of them contain, such as the name in question, distinguishes
    nothing, and one that none contains shows that the question uses other words.
    """
    best = sorted(hits, key=lambda hit: (-hit.words, -hit.cosine))[:LOOKED_AT]
    if not best or not best[0].words:
        return 0.0
    said = (word for word in WORD.findall(question.lower()) if word not in ASKING)
    asked = list(dict.fromkeys(word[:STEM] for word in said))[:LONGEST]
    texts = [hit.row.text.lower() for hit in best]
    rare = {word: rarity(sum(word in text for text in texts), len(texts)) for word in asked}
    whole = sum(rare.values())
    return sum(one for word, one in rare.items() if word in texts[0]) / whole if whole else 0.0


def rarity(having: int, texts: int) -> float:
    """The weight of a word that so many of the texts contain.  Source: BM25's inverse document frequency."""
    return log(1 + (texts - having + 0.5) / (having + 0.5))
