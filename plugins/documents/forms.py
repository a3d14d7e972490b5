"""The request bodies and queries of the document endpoints, validated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from proxy.config import Strict
from proxy.types import JSON

Value = str | bool | int | float


def cleaned(text: str) -> str:
    """The text without null characters, which databases refuse.  Raises ValueError if it is not valid Unicode."""
    clean = text.replace("\0", "")
    try:
        clean.encode()
    except UnicodeEncodeError:
        raise ValueError("it is not valid Unicode text") from None
    return clean


def something(text: str) -> str:
    """`cleaned`, for a text that must not be empty."""
    if not (clean := cleaned(text)):
        raise ValueError("it contains no usable character")
    return clean


def _metadata(given: dict[str, Value]) -> dict[str, Value]:
    if len(given) > 16:
        raise ValueError("it has more than 16 entries")
    for name, value in given.items():
        if not 1 <= len(name) <= 64 or "\0" in name:
            raise ValueError("a name has from 1 to 64 characters")
        if isinstance(value, str) and len(value) > 512:
            raise ValueError(f"the text of '{name}' has more than 512 characters")
        if isinstance(value, int) and abs(value) >= 2**53:
            raise ValueError(f"the number of '{name}' has too many digits")
    return {name: cleaned(value) if isinstance(value, str) else value for name, value in given.items()}


def _tuple(given: object) -> object:
    return tuple(given) if isinstance(given, list) else given


Title = Annotated[str, StringConstraints(min_length=1, max_length=500), AfterValidator(something)]
Source = Annotated[str, StringConstraints(max_length=2000), AfterValidator(cleaned)]
Text = Annotated[str, StringConstraints(min_length=1), AfterValidator(something)]
Metadata = Annotated[dict[str, Value], AfterValidator(_metadata)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=100), AfterValidator(something)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_tuple), Field(max_length=32)]
Question = Annotated[str, StringConstraints(min_length=1, max_length=8000), AfterValidator(something)]
Top = Annotated[int, Field(ge=1, le=50)]
Wait = Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)]


class AddDocument(Strict):
    """wait: maximum seconds that the request waits until the document is searchable."""

    title: Title
    content: Text
    source: Source = ""
    metadata: Metadata = Field(default_factory=dict)
    collection: Name | None = None
    wait: Wait = 5.0


class FileDocument(Strict):
    """The fields sent with a file; the title defaults to the file's name."""

    title: Title
    source: Source = ""
    metadata: Metadata = Field(default_factory=dict)
    collection: Name | None = None
    wait: Wait = 5.0


class ChangeDocument(Strict):
    """Only the given fields change; a new title or content creates a new version."""

    title: Title | None = None
    content: Text | None = None
    source: Source | None = None
    metadata: Metadata | None = None
    wait: Wait = 5.0


class Page(Strict):
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    after: Name | None = None
    collection: Name | None = None
    status: Annotated[str, StringConstraints(pattern="^(pending|ready|failed)$")] | None = None


class Some(Strict):
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class Shared(Strict):
    everyone: bool = False
    """All callers may read it."""
    readers: Annotated[tuple[Name, ...], BeforeValidator(_tuple), Field(max_length=1000)] = ()
    """Callers who may read it."""


class MakeCollection(Strict):
    """embed: the embedding model, which the collection keeps."""

    name: Name
    description: Source = ""
    embed: Name | None = None
    shared: Shared = Shared()


class ChangeCollection(Strict):
    """embed: the embedding model to move to."""

    name: Name | None = None
    embed: Name | None = None
    description: Source | None = None
    shared: Shared | None = None


class Asked(Strict):
    query: Question
    top_k: Top = 5
    collections: Names = ()
    filter: Any = None
    explain: bool = False
    words: Annotated[float, Field(ge=0, le=1)] | None = None
    """Weight of the text score, in place of the setting."""
    fusion: Literal["scores", "ranks"] | None = None
    rerank: bool | None = None
    """Whether a model reranks the results; None means if one is configured."""
    closer: Annotated[int, Field(ge=0, le=50)] | None = None
    """Passages that are reranked by their pieces, in place of the setting."""
    merge: bool = True
    """Whether consecutive chunks are merged into one passage."""


class Generate(Strict):
    query: Question
    model: Name
    top_k: Top | None = None
    collections: Names = ()
    filter: Any = None
    system: Source = ""
    stream: bool = False
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: int | None = None


Told = dict[str, JSON]
