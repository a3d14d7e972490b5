"""The text of a document, from a request or a file, in parts small enough to hold many in memory."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Final

from plugins.documents.chunks import PART, clean, parts

SHORT: Final = 256 * 1024
"""Characters below which a text is prepared without a thread."""


@dataclass(frozen=True, slots=True)
class Content:
    """A cleaned text.  parts: gives its parts, anew on each call.  digest: SHA-256.  blank: whether it is all space."""

    parts: Callable[[], Iterable[str]]
    digest: str
    characters: int
    blank: bool = False

    @classmethod
    async def of(cls, text: str) -> Content:
        return cls.cut(text) if len(text) < SHORT else await asyncio.to_thread(cls.cut, text)

    @classmethod
    def cut(cls, text: str) -> Content:
        cleaned = clean(text)
        digest = hashlib.sha256(cleaned.encode("utf-8", "surrogatepass")).hexdigest()
        return cls(lambda: parts(cleaned), digest, len(cleaned))

    @classmethod
    def of_file(cls, file: IO[bytes]) -> Content:
        """From a UTF-8 file, with only about one part in memory at a time."""
        digest, characters, blank = hashlib.sha256(), 0, True
        for piece in pieces_of(file):
            blank = blank and not piece.strip()
            digest.update(piece.encode())
            characters += len(piece)
        return cls(lambda: parts_of(file), digest.hexdigest(), characters, blank)


def pieces_of(file: IO[bytes]) -> Iterator[str]:
    file.seek(0)
    reader = io.TextIOWrapper(file, "utf-8", "replace", newline=None)
    try:
        while piece := reader.read(PART):
            yield piece.replace("\0", "")
    finally:
        reader.detach()


def parts_of(file: IO[bytes]) -> Iterator[str]:
    """The same parts as `parts` makes of the whole text, independent of the size of reads."""
    text = ""
    for piece in pieces_of(file):
        text += piece
        while len(text) > 2 * PART:
            first = next(parts(text))
            yield first
            text = text[len(first) :]
    yield from parts(text)
