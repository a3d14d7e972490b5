"""The request bodies of the vector store endpoints, validated.  Source: OpenAI's API reference, "Vector stores"."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from plugins.documents.forms import Metadata, Name, Question, Source, cleaned
from proxy.config import Strict

MOST_FILES: Final = 2000
"""Maximum files of one batch."""
MOST_QUERIES: Final = 16
LETTERS: Final = 3.5
"""Characters per token, a conservative estimate: chunks are cut by characters, since tokens differ among models."""


def _sane(id: str) -> str:
    if "\0" in id:  # not every database accepts it
        raise ValueError("it can be no such thing")
    return id


Id = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(_sane)]


def _tuple(given: object) -> object:
    return tuple(given) if isinstance(given, list) else given


def _several(given: object) -> object:
    return (given,) if isinstance(given, str) else _tuple(given)


def _texts(given: dict[str, Any]) -> dict[str, Any]:
    for name, value in given.items():
        if not isinstance(value, str):
            raise ValueError(f"the value of '{name[:64]}' is no string")
    return given


Ids = Annotated[tuple[Id, ...], BeforeValidator(_tuple), Field(min_length=1, max_length=MOST_FILES)]
Labels = Annotated[Metadata, AfterValidator(_texts)]
Queries = Annotated[tuple[Question, ...], BeforeValidator(_several), Field(min_length=1, max_length=MOST_QUERIES)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Static(Strict):
    max_chunk_size_tokens: Annotated[int, Field(ge=100, le=4096)]
    chunk_overlap_tokens: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if 2 * self.chunk_overlap_tokens > self.max_chunk_size_tokens:
            raise ValueError("chunk_overlap_tokens is more than half of max_chunk_size_tokens")
        return self


class Chunking(Strict):
    type: Literal["auto", "static"]
    static: Static | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.type == "static") != (self.static is not None):
            raise ValueError("'static' is required if the type is 'static', and not allowed otherwise")
        return self

    @property
    def letters(self) -> tuple[int, int]:
        """Characters of a chunk and of its overlap; 0 for the default."""
        if self.static is None:
            return 0, 0
        sizes = (self.static.max_chunk_size_tokens, self.static.chunk_overlap_tokens)
        return int(sizes[0] * LETTERS), int(sizes[1] * LETTERS)


class Expiry(Strict):
    anchor: Literal["last_active_at"]
    days: Annotated[int, Field(ge=1, le=365)]


class MakeStore(Strict):
    name: Annotated[str, StringConstraints(max_length=100), AfterValidator(cleaned)] = ""
    description: Source = ""
    file_ids: Annotated[tuple[Id, ...], BeforeValidator(_tuple), Field(max_length=MOST_FILES)] = ()
    chunking_strategy: Chunking | None = None
    expires_after: Expiry | None = None
    metadata: Labels | None = None


class ChangeStore(Strict):
    """Only the given fields change; `expires_after: null` means never."""

    name: Name | None = None
    expires_after: Expiry | None = None
    metadata: Labels | None = None


class AddFile(Strict):
    file_id: Id
    attributes: Metadata | None = None
    chunking_strategy: Chunking | None = None


class AddFiles(Strict):
    """Either `file_ids` with common options, or `files` with options of their own."""

    file_ids: Ids | None = None
    files: Annotated[tuple[AddFile, ...], BeforeValidator(_tuple), Field(min_length=1, max_length=MOST_FILES)] | None
    files = None
    attributes: Metadata | None = None
    chunking_strategy: Chunking | None = None

    @model_validator(mode="after")
    def _either(self) -> Self:
        if (self.file_ids is None) == (self.files is None):
            raise ValueError("send either 'file_ids' or 'files'")
        return self

    def each(self) -> list[AddFile]:
        if self.files is not None:
            return list(self.files)
        how = self.chunking_strategy
        return [AddFile(file_id=one, attributes=self.attributes, chunking_strategy=how) for one in self.file_ids or ()]


class ChangeFile(Strict):
    attributes: Metadata | None


class Page(Strict):
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: Id | None = None
    before: Id | None = None


class FilePage(Page):
    filter: Literal["in_progress", "completed", "failed", "cancelled"] | None = None


class Hybrid(Strict):
    embedding_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    text_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _any(self) -> Self:
        if not self.embedding_weight + self.text_weight > 0:
            raise ValueError("one of the weights must be more than 0")
        return self


class Ranking(Strict):
    """ranker: `none` turns reranking off; the others all mean the same."""

    ranker: Literal["none", "auto", "default-2024-11-15"] = "auto"
    score_threshold: Share = 0.0
    hybrid_search: Hybrid | None = None

    @property
    def words(self) -> float | None:
        """Weight of the text score; None for the default."""
        if self.hybrid_search is None:
            return None
        one = self.hybrid_search
        return one.text_weight / (one.embedding_weight + one.text_weight)


class Asked(Strict):
    query: Queries
    filters: Any = None
    max_num_results: Annotated[int, Field(ge=1, le=50)] = 10
    ranking_options: Ranking | None = None
    rewrite_query: bool = False


class Tool(Strict):
    """The tool `file_search`.  results: whether the answer includes the passages found."""

    vector_store_ids: Annotated[tuple[Id, ...], BeforeValidator(_tuple), Field(min_length=1, max_length=32)]
    filters: Any = None
    max_num_results: Annotated[int, Field(ge=1, le=50)] | None = None
    ranking_options: Ranking | None = None
    results: bool = False
