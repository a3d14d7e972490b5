"""Prepares the words of a search, and makes excerpts around matches.

The databases' own functions for excerpts take time proportional to the square of a text's length.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Final

SPACED: Final = str.maketrans(dict.fromkeys(string.punctuation, " "))
"""Replaces punctuation by spaces: PostgreSQL's parser takes hours for some sequences of it."""
LOOKED: Final = 200_000
"""Characters of a text that are searched for the excerpt, as many as PostgreSQL's index covers."""
FEW: Final = 8
"""Maximum number of words, and of occurrences of each, that are looked at."""
BEFORE: Final = 60
LENGTH: Final = 200
"""Maximum characters before the match, and of the whole excerpt."""


def spaced(words: str) -> str:
    return words.translate(SPACED)


def around(text: str, words: Sequence[str]) -> str:
    """An excerpt around the first of the words that is found; the beginning of the text if none is."""
    low = text[:LOOKED].lower()
    places = (place for word in words[:FEW] if (place := place_of(low, word.lower())) is not None)
    first = next(places, 0)
    start = max(first - BEFORE, 0)
    if start and (space := text.find(" ", start, first)) >= 0:
        start = space + 1
    end = start + LENGTH
    if end < len(text) and (space := text.rfind(" ", first, end)) >= 0:
        end = space
    return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"


def place_of(text: str, word: str) -> int | None:
    """The index of an occurrence as a whole word; else the first as part of one; None if there is none."""
    first = at = text.find(word)
    for _ in range(FEW):
        end = at + len(word)
        if at < 0 or not (text[max(at - 1, 0) : at].isalnum() or text[end : end + 1].isalnum()):
            break
        at = text.find(word, at + 1)
    return next((one for one in (at, first) if one >= 0), None)
