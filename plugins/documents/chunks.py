"""Cuts texts into chunks that can be understood on their own."""

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
"""Approximate characters of a part, the unit in which texts are stored and cut."""
HEADING: Final = re.compile(r"(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$")
FENCE: Final = re.compile(r"[ ]{0,3}(`{3,}|~{3,})")
MARKDOWN: Final = re.compile(r"^(?:#{1,6} |```|~~~|\|.*\|[ \t]*$)", re.M)
PAGE: Final = "\f"
SMALL: Final = 200
"""Minimum characters before a heading for which a chunk ends there."""
LONGEST_HEAD: Final = 300
NOTHING: Final = re.compile(r"[\W_]*")


class Chunk(NamedTuple):
    """start, end: offsets in the whole text, in characters.  headings: outermost first.  page: from 1, 0 if unknown."""

    text: str
    start: int
    end: int
    headings: tuple[str, ...]
    page: int


def clean(text: str) -> str:
    """The text without null characters, which databases refuse, and with line feeds as line ends."""
    return text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")


def parts(text: str, size: int = PART) -> Iterator[str]:
    """The text in parts that end at a page, else a paragraph, a line or a word, if possible."""
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
    """Cuts the parts of one text in order; headings and page numbers carry over to the next part.

    size: maximum characters of a chunk.  overlap: how many of them may repeat the previous chunk's end.
    """

    size: int
    overlap: int = 0
    at: int = 0
    page: int = 0
    headings: tuple[tuple[int, str], ...] = ()
    fence: str = ""

    def cut(self, part: str) -> list[Chunk]:
        """The chunks of the next part.  The splitter is written in Rust and releases the GIL."""
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
        """The offsets of headings, and the heading paths that apply before, between and after them."""
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
        """The mark that closes the code block open after this line; "" if none is open."""
        if not self.fence:
            return mark
        return "" if mark.startswith(self.fence) else self.fence

    def path(self) -> tuple[str, ...]:
        return tuple(text for _, text in self.headings)


def sections(page: str, place: int, places: list[int]) -> Iterator[tuple[int, str]]:
    """The offset and text of each section: what is under one heading, or under several if that is short.

    places: offsets of headings; place: offset of the page.
    """
    at, end = place, place + len(page)
    for border in places[bisect_left(places, place + 1) : bisect_left(places, end)]:
        if border - at >= SMALL:
            yield at, page[at - place : border - place]
            at = border
    if at < end:
        yield at, page[at - place :]


def bare(chunk: Chunk) -> bool:
    """Whether a chunk has only headings; those are part of the following chunks' paths anyway."""
    return all(not line.strip() or HEADING.match(line) for line in chunk.text.splitlines())


def head(title: str, chunk: Chunk) -> str:
    """The text before a chunk when it is embedded and indexed: the title and its headings.

    Headings in the chunk itself are left out, because repeating them would rank first chunks above the others.
    """
    own = {found[2] for line in chunk.text.splitlines() if (found := HEADING.match(line)) is not None}
    told = " > ".join(dict.fromkeys(one for one in (title, *chunk.headings) if one and one not in own))[:LONGEST_HEAD]
    return f"{told}\n\n" if told else ""


@lru_cache(maxsize=32)
def splitter(size: int, marked: bool, overlap: int) -> MarkdownSplitter | TextSplitter:
    from semantic_text_splitter import MarkdownSplitter, TextSplitter  # an optional dependency

    return MarkdownSplitter(size, overlap=overlap) if marked else TextSplitter(size, overlap=overlap)
