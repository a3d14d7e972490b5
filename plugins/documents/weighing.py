"""How much words count in a search where nobody says it: pure, no input or output.

Each of the two scores counts as much as it tells: that of the words by how much of the question the texts have, that of
the vectors by how far apart it sees what was found.  The first is little where a question is asked in other words, and
those that it shares with the texts, such as a name, stand in many of them; the second where nothing that was found is
clearly nearer than the rest.  How far apart is far differs from model to model, and is measured by a few sentences; a
model that knows no meaning stays near a search by words.
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
"""To these questions, in their order, with no word of theirs that tells anything."""
SAMPLE: Final = (*QUESTIONS, *ANSWERS)
CHANCE: Final = 2.0
SURE: Final = 4.0
"""By how many standard deviations answers are more like their questions than others are: of hashed words -0.2 was
measured, of the mean of words' vectors 1.3, of all-MiniLM-L6-v2 7.2."""
KEPT: Final = 256
"""Models of which that is remembered."""
POOR: Final = 0.7
"""Of the words, beside a model that knows no meaning."""
LOOKED_AT: Final = 100
LONGEST: Final = 32
"""Texts by which words are weighed, and words: a question may be as long as a text, and a search wide."""
WORD: Final = re.compile(r"\w+")
STEM: Final = 5
"""Letters by which a word is told, whatever its ending is."""
ASKING: Final = frozenset(("what", "when", "where", "which", "who", "whom", "whose", "why", "how", "does", "did"))
"""Words that ask: no answer has them, however well it fits."""


@dataclass(frozen=True, slots=True)
class Eye:
    """What a model sees.  trust: whether it knows what texts mean, from 0 to 1.

    apart: by how much an answer's cosine is above that of a text that has nothing to do with the question.
    """

    trust: float
    apart: float


@dataclass(frozen=True, slots=True)
class Weigher:
    """eyes: of models whose vectors of the sample were seen."""

    eyes: OrderedDict[str, Eye] = field(default_factory=OrderedDict)

    def learn(self, model: str, vectors: NDArray[np.float32]) -> None:
        """vectors: of the sample, shape (texts, dimensions), unit length."""
        self.eyes[model] = eye(vectors)
        while len(self.eyes) > KEPT:
            self.eyes.popitem(last=False)

    def weights(self, models: Iterable[str], question: str, hits: Sequence[Hit]) -> Mapping[str, float]:
        """Of the words, from 0 to 1, by model: for this question, of which these texts were found."""
        seen = {model: self.eyes.get(model, Eye(0.0, 1.0)) for model in models}
        covered = coverage(question, hits) if any(one.trust for one in seen.values()) else 0.0
        return {
            model: weight(one, covered, [hit.cosine for hit in hits if hit.model == model])
            for model, one in seen.items()
        }


def eye(vectors: NDArray[np.float32]) -> Eye:
    import numpy as np

    like = vectors[: len(QUESTIONS)] @ vectors[len(QUESTIONS) :].T
    own = np.eye(len(like), dtype=bool)
    apart = float(like[own].mean() - like[~own].mean())
    deviations = apart / (float(like[~own].std()) or 1.0)
    return Eye(min(1.0, max(0.0, (deviations - CHANCE) / (SURE - CHANCE))), apart)


def weight(one: Eye, covered: float, cosines: Sequence[float]) -> float:
    if not one.trust or not cosines:
        return POOR
    spread = (max(cosines) - min(cosines)) / one.apart
    told = covered / (covered + spread) if covered else 0.0
    return (1 - one.trust) * POOR + one.trust * told


def coverage(question: str, hits: Sequence[Hit]) -> float:
    """The share of what is asked that the best text by words has, from 0 to 1; rare words count for more.

    What is rare is told by what was found: a word that all of it has, such as the name that is asked about, tells
    nothing apart, and one that none of it has is what the question says in other words.
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
    """Source: BM25's weight of a word."""
    return log(1 + (texts - having + 0.5) / (having + 0.5))
