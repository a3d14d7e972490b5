"""A text cut into chunks that can be understood by themselves."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

PART: Final = 64 * 1024
"""Characters that are cut at once, about."""
HEADING: Final = re.compile(r"(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$")
FENCE: Final = re.compile(r"[ ]{0,3}(`{3,}|~{3,})")
MARKDOWN: Final = re.compile(r"^(?:#{1,6} |```|~~~|\|.*\|[ \t]*$)", re.M)
PAGE: Final = "\f"
SMALL: Final = 200
"""Characters that are worth a chunk of their own where a heading follows."""
LONGEST_HEAD: Final = 300
NOTHING: Final = re.compile(r"[\W_]*")


class Chunk(NamedTuple):
    """start, end: characters of the whole text.  headings: the outermost first.  page: from 1, or 0."""

    text: str
    start: int
    end: int
    headings: tuple[str, ...]
    page: int


def clean(text: str) -> str:
    """Without what no database takes, and with one kind of line end."""
    return text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")


def parts(text: str, size: int = PART) -> Iterator[str]:
    """The text in pieces that end between paragraphs, else lines, else words, wherever that is possible."""
    at = 0
    while len(text) - at > size:
        end = at + size
        for border in (PAGE, "\n\n", "\n", " "):
            if (found := text.rfind(border, at + size // 2, end)) > 0:
                end = found + len(border)
                break
        yield text[at:end]
        at = end
    if at < len(text):
        yield text[at:]


@dataclass(slots=True)
class Cutter:
    """Cuts the parts of one text in their order; what it has seen of headings and pages goes on into the next.

    size: characters of a chunk at most.  overlap: those of them that the one before may have, too.
    """

    size: int
    overlap: int = 0
    at: int = 0
    page: int = 0
    headings: tuple[tuple[int, str], ...] = ()
    fence: str = ""

    def cut(self, part: str) -> list[Chunk]:
        """The splitter is Rust and leaves the interpreter free: half a megabyte takes milliseconds."""
        marked = bool(self.fence or MARKDOWN.search(part))
        places, paths = self.seen(part)
        chunks: list[Chunk] = []
        place = 0
        pages = part.split(PAGE)
        if len(pages) > 1 and not self.page:
            self.page = 1
        for number, page in enumerate(pages):
            self.page += number > 0
            for start, piece in sections(page, place, places):
                for offset, text in splitter(self.size, marked, self.overlap).chunk_indices(piece):
                    if NOTHING.fullmatch(text) is None:
                        begin = start + offset
                        path = paths[bisect_right(places, begin)]
                        begin += self.at
                        chunks.append(Chunk(text, begin, begin + len(text), path, self.page))
            place += len(page) + 1
        self.at += len(part)
        return [one for one in chunks if not bare(one)] or chunks

    def seen(self, part: str) -> tuple[list[int], list[tuple[str, ...]]]:
        """Where headings begin, and those that stand above what comes before the first, between them, and after all."""
        places: list[int] = []
        paths = [self.path()]
        place = 0
        for line in part.splitlines(keepends=True):
            if (fence := FENCE.match(line)) is not None:
                self.fence = self.fenced(fence[1])
            elif not self.fence and (heading := HEADING.match(line.rstrip("\n"))) is not None:
                level = len(heading[1])
                above = tuple(one for one in self.headings if one[0] < level)
                self.headings = (*above, (level, heading[2][:LONGEST_HEAD]))
                places.append(place)
                paths.append(self.path())
            place += len(line)
        return places, paths

    def fenced(self, mark: str) -> str:
        """What closes the code that is open after this line; "" where none is."""
        if not self.fence:
            return mark
        return "" if mark.startswith(self.fence) else self.fence

    def path(self) -> tuple[str, ...]:
        return tuple(text for _, text in self.headings)


def sections(page: str, place: int, places: list[int]) -> Iterator[tuple[int, str]]:
    """What stands under one heading, or under several where that is little.  places: where headings begin; place: where
    the page does."""
    at, end = place, place + len(page)
    for border in places[bisect_left(places, place + 1) : bisect_left(places, end)]:
        if border - at >= SMALL:
            yield at, page[at - place : border - place]
            at = border
    if at < end:
        yield at, page[at - place :]


def bare(chunk: Chunk) -> bool:
    """Headings and nothing else: they stand above every chunk that follows anyway."""
    return all(not line.strip() or HEADING.match(line) for line in chunk.text.splitlines())


def head(title: str, chunk: Chunk) -> str:
    """What stands before a chunk where it is embedded and indexed: the title, and headings that it does not begin with
    itself; to name them twice would put every beginning before what follows it."""
    own = {found[2] for line in chunk.text.splitlines() if (found := HEADING.match(line)) is not None}
    told = " > ".join(dict.fromkeys(one for one in (title, *chunk.headings) if one and one not in own))[:LONGEST_HEAD]
    return f"{told}\n\n" if told else ""


@lru_cache(maxsize=32)
def splitter(size: int, marked: bool, overlap: int) -> MarkdownSplitter | TextSplitter:
    from semantic_text_splitter import MarkdownSplitter, TextSplitter  # only those who need it have it

    return MarkdownSplitter(size, overlap=overlap) if marked else TextSplitter(size, overlap=overlap)
