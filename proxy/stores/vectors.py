"""Vector stores, the contract: texts with vectors, which can be searched by words and by similarity."""

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
    """The store cannot be used at the moment.  whole: the full message for the operator, which may contain paths."""

    def __init__(self, message: str, whole: str = "") -> None:
        super().__init__(message, code="index_unavailable", wait=5.0)
        self.whole = whole or message

    @property
    def why(self) -> str:
        return self.whole


class Row(NamedTuple):
    """A text and its position in a document.  about: more data about it, as text; the store does not interpret it."""

    document: str
    version: int
    position: int
    text: str
    about: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A search result.  score: cosine, or BM25.  vector: float32, shape (dimensions,), unit length."""

    row: Row
    score: float
    vector: NDArray[np.float32]


Alone: TypeAlias = Callable[[str], AbstractAsyncContextManager[None]]
"""A lock between processes, by name."""


def only_process(_: str) -> AbstractAsyncContextManager[None]:
    """No lock, for when no other process can create the table."""
    return nullcontext()


class Vectors(Protocol):
    """Tables of rows.  Every method raises VectorsAway if the store fails.

    Every process sees at its next search what another one has added or removed.  A table that does not exist counts as
    empty, and is created when rows are added.  Names and documents consist of letters, digits, `_` and `-`.
    """

    async def add(
        self, table: str, rows: Sequence[Row], vectors: NDArray[np.float32], alone: Alone = only_process
    ) -> None:
        """Add all rows or none.  vectors: shape (rows, dimensions), unit length, no NaN; dimensions are the table's.

        alone: the lock under which a missing table is created; if two processes did this at once, one would delete the
        rows of the other.
        """

    async def remove(self, table: str, document: str, first: int = 0, until: int | None = None) -> None:
        """Remove rows of a document: those of its versions from `first` up to, but not including, `until`."""

    async def count(self, table: str, document: str, version: int) -> int:
        """The number of rows of one version of a document."""

    async def nearest(
        self, table: str, question: NDArray[np.float32], top: int, among: Collection[str] | None = None
    ) -> list[Found]:
        """The rows with the highest cosine, best first.  among: only in these documents; the search is then exact."""

    async def matching(self, table: str, words: str, top: int, among: Collection[str] | None = None) -> list[Found]:
        """The rows whose texts match the words best by BM25, best first; a row need not contain all words."""

    async def counts(self, table: str) -> Mapping[tuple[str, int], int]:
        """The number of rows of each document and version."""

    async def tend(self, table: str) -> None:
        """Add new rows to the indices and clean up old data; without this, searches become slower."""

    async def drop(self, table: str) -> None: ...

    async def tables(self) -> Collection[str]: ...

    async def aclose(self) -> None: ...
