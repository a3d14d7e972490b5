"""Interface to callers' files: one feature keeps them, and others use them without importing it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from msgspec import Struct


class FileInfo(Struct, frozen=True):
    """A file's metadata.

    name: given by its owner, and never used as a path.  expires: microseconds since 1970; None means never.
    """

    id: str
    name: str
    purpose: str
    bytes: int
    expires: int | None = None


class FileStore(Protocol):
    """Keeps files.  Every method sees only this caller's, and raises Busy while the files are unavailable."""

    async def find(self, caller: str, ids: Collection[str]) -> Mapping[str, FileInfo]:
        """Those of these files that exist, by id."""

    def pieces(self, caller: str, id: str) -> AsyncIterator[bytes]:
        """The bytes of a file, with at most one MiB in memory.  Raises NotFound, also midway."""

    async def add(self, caller: str, name: str, purpose: str, pieces: AsyncIterator[bytes], id: str = "") -> FileInfo:
        """Store a file for a caller as if they had uploaded it, from pieces of at most one MiB.

        id: makes this idempotent: if a file with this id exists, that one is returned.  "" makes a new id.
        Raises BadCall or TooLarge, with nothing stored, if it exceeds what the caller may have.
        """

    async def discard(self, caller: str, id: str) -> None:
        """Delete a file and everything derived from it, if it exists."""


RemovalHook: TypeAlias = Callable[[str, str], Awaitable[None]]
"""Is called with a caller and the id of a file, and awaited, before the file is deleted."""


class TextExtractor(Protocol):
    """Extracts the text of files."""

    async def text(self, name: str, pieces: AsyncIterator[bytes], most: int) -> str:
        """A file's text, as a model is shown it, of at most `most` characters.

        Raises BadCall if the file cannot be read, and what reading the pieces raises.
        """


@dataclass(slots=True)
class FileAccess:
    """What features offer for files.

    store: keeps them; None if no feature does.  extractor: extracts their text; None if no feature does.
    removal_hooks: called before a file is deleted, by features that derived something from it.
    """

    store: FileStore | None = None
    extractor: TextExtractor | None = None
    removal_hooks: list[RemovalHook] = field(default_factory=list)
