"""A store of texts with their vectors, searched both ways: the contract."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from proxy.errors import Busy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class VectorsAway(Busy):
    """The store cannot be used now.  whole: all that is known of it, of which its callers need not know the paths."""

    def __init__(self, message: str, whole: str = "") -> None:
        super().__init__(message, code="index_unavailable", wait=5.0)
        self.whole = whole or message

    @property
    def why(self) -> str:
        return self.whole


class Row(NamedTuple):
    """A text, and where it belongs.  about: whatever its owner wants to know of it, as text."""

    document: str
    version: int
    position: int
    text: str
    about: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A row that was searched for.  score: a cosine, or BM25's.  vector: float32, shape (dimensions,), unit length."""

    row: Row
    score: float
    vector: NDArray[np.float32]


Alone: TypeAlias = Callable[[str], AbstractAsyncContextManager[None]]
"""Lets one at a time in, of all that name the same."""


def only_process(_: str) -> AbstractAsyncContextManager[None]:
    """Where no other could make the table meanwhile."""
    return nullcontext()


class Vectors(Protocol):
    """Tables of rows.  Every method raises VectorsAway where the store fails.

    What one process has added or removed every process sees at its next search.  A table that is not there is empty,
    and adding to it makes it.  Names and documents are letters, digits, `_` and `-`.
    """

    async def add(
        self, table: str, rows: Sequence[Row], vectors: NDArray[np.float32], alone: Alone = only_process
    ) -> None:
        """All of them or none.  vectors: shape (rows, dimensions), unit length, no NaN; dimensions are the table's.

        alone: under which the table is made where there is none; of two processes that do that at once, one would undo
        what the other has added.
        """

    async def remove(self, table: str, document: str, first: int = 0, until: int | None = None) -> None:
        """Rows of a document: of its versions from the first up to, and without, the last."""

    async def count(self, table: str, document: str, version: int) -> int:
        """How many rows of it are there."""

    async def nearest(
        self, table: str, question: NDArray[np.float32], top: int, among: Collection[str] | None = None
    ) -> list[Found]:
        """Those whose vectors have the highest cosine, best first.  among: of these documents only; exact then."""

    async def matching(self, table: str, words: str, top: int, among: Collection[str] | None = None) -> list[Found]:
        """Those whose texts fit the words best by BM25, best first; some of the words are enough."""

    async def counts(self, table: str) -> Mapping[tuple[str, int], int]:
        """Of each document and version, how many rows are there."""

    async def tend(self, table: str) -> None:
        """Take new rows into the indices, and clean up after old ones: searches slow down without it."""

    async def drop(self, table: str) -> None: ...

    async def tables(self) -> Collection[str]: ...

    async def aclose(self) -> None: ...
