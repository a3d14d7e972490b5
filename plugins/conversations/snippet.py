"""What a database is asked for words, and some of a text around them.

Both databases have a function for the latter, which takes as long as the square of a text's length.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Final

SPACED: Final = str.maketrans(dict.fromkeys(string.punctuation, " "))
"""PostgreSQL is given no signs: its parser takes hours over some texts of them."""
LOOKED: Final = 200_000
"""Letters of a text that are looked through, as many as PostgreSQL keeps the words of."""
FEW: Final = 8
"""Words, and places of each, that are looked at."""
BEFORE: Final = 60
LENGTH: Final = 200
"""Letters before the first word that is found, and of all."""


def spaced(words: str) -> str:
    return words.translate(SPACED)


def around(text: str, words: Sequence[str]) -> str:
    """Some of a text, with one of the words in it, where that is found soon; else its beginning."""
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
    """Where it stands as a word, or at least as part of one."""
    first = at = text.find(word)
    for _ in range(FEW):
        end = at + len(word)
        if at < 0 or not (text[max(at - 1, 0) : at].isalnum() or text[end : end + 1].isalnum()):
            break
        at = text.find(word, at + 1)
    return next((one for one in (at, first) if one >= 0), None)
