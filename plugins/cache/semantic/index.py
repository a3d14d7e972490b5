"""An in-memory vector index of answered questions, grouped by their context."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

FIRST: Final = 1
"""Initial capacity of a group.  Most hold one question, so spare rows would take most of the memory."""
MOST: Final = 2048
"""Maximum number of questions in a group: those with the same system prompt, history, options and so on."""
CLOSEST: Final = 5
"""Nearest questions that a search returns at most."""


class ContextGroup:
    """Questions with the same context.  Their vectors have shape (capacity, dimensions), float32, unit length."""

    def __init__(self, dimensions: int) -> None:
        import numpy as np

        self.vectors = np.zeros((FIRST, dimensions), np.float32)
        self.asked: list[tuple[str, str]] = []
        """By row: the key of the answer, and the question."""
        self.places: dict[str, int] = {}
        """Row by key of the answer, oldest first."""

    def add(self, where: str, question: str, vector: Vector, most: int = MOST) -> None:
        import numpy as np

        self.drop(where)
        while len(self.asked) >= min(most, MOST):
            self.drop(next(iter(self.places)))
        place = len(self.asked)
        if place == len(self.vectors):
            self.vectors = np.concatenate([self.vectors, np.zeros_like(self.vectors)])
        self.vectors[place] = vector
        self.asked.append((where, question))
        self.places[where] = place

    def drop(self, where: str) -> None:
        """Remove a question; the last row moves to its place."""
        place = self.places.pop(where, None)
        if place is None:
            return
        last = self.asked.pop()
        if place < len(self.asked):
            self.asked[place] = last
            self.vectors[place] = self.vectors[len(self.asked)]
            self.places[last[0]] = place

    def near(self, vector: Vector, threshold: float) -> Iterator[tuple[str, str, float]]:
        """Key of the answer, question and cosine of the nearest ones, best first."""
        import numpy as np

        cosines = self.vectors[: len(self.asked)] @ vector
        for place in np.argsort(-cosines)[:CLOSEST]:
            if cosines[place] < threshold:
                return
            yield (*self.asked[place], float(cosines[place]))


class Index:
    """All groups; the least recently used are evicted when they hold more than `most` questions together."""

    def __init__(self) -> None:
        self.groups: OrderedDict[str, ContextGroup] = OrderedDict()
        self.size = 0

    def add(self, context: str, where: str, question: str, vector: Vector, most: int) -> None:
        found = self.groups.get(context)
        if found is None or found.vectors.shape[1] != len(vector):
            self.forget(context)
            found = self.groups[context] = ContextGroup(len(vector))
        self.groups.move_to_end(context)
        self.size -= len(found.asked)
        found.add(where, question, vector, most)
        self.size += len(found.asked)
        while self.size > most and len(self.groups) > 1:
            self.forget(next(iter(self.groups)))

    def near(self, context: str, vector: Vector, threshold: float) -> list[tuple[str, str, float]]:
        found = self.groups.get(context)
        if found is None or found.vectors.shape[1] != len(vector):
            return []
        self.groups.move_to_end(context)
        return list(found.near(vector, threshold))

    def drop(self, context: str, where: str) -> None:
        if (found := self.groups.get(context)) is not None:
            self.size -= len(found.asked)
            found.drop(where)
            self.size += len(found.asked)

    def forget(self, context: str) -> None:
        if (found := self.groups.pop(context, None)) is not None:
            self.size -= len(found.asked)
