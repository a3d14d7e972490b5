"""Compares the words of two questions whose vectors are similar.

Vectors cannot tell a question from its opposite: even with a good model, "trade of poorer countries with richer ones"
and its reverse have a cosine of 0.997.  Differences that change the answer are therefore found in the words.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

LONGEST: Final = 2000
"""Maximum length of a question, in characters; longer ones are never matched."""
PIECE: Final = re.compile(r"\d+(?:[.,:/-]\d+)*%?|[^\W\d_]+(?:['\u2019][^\W\d_]+)*\d*|[^\w\s]")
ENDS: Final = frozenset('.!?:;\u201c\u201d"(')
"""After these a sentence may begin, so a capital letter does not mark a name."""
SIGNS: Final = frozenset("+-*/=<>^%$|&~\u20ac\u00a3")


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NUMBERS: Final = words("""
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion trillion
    first second third fourth fifth sixth seventh eighth ninth tenth half quarter double triple dozen once twice thrice
    both single pair last next previous
""")
NEGATIONS: Final = words("""
    no not never none nobody nothing nowhere neither nor without cannot except unless hardly barely
    nicht kein keine keinen nie niemals ohne pas jamais sans aucun aucune rien non sin nunca nada senza mai niente
""")
DATES: Final = words("""
    january february march april may june july august september october november december monday tuesday wednesday
    thursday friday saturday sunday today tomorrow yesterday tonight morning noon afternoon evening night midnight now
    week month year decade century weekend spring summer autumn fall winter ago before after since until during early
    late earlier later
""")
OPPOSITES: Final = words("""
    more less most least fewer fewest many few max min maximum minimum highest lowest higher lower high low up down
    above below over under increase decrease raise reduce grow shrink open close opened closed enable disable enabled
    disabled start stop begin end off out inside outside export import add remove insert delete push pull read write
    send receive buy sell lend borrow win lose best worst better worse good bad pro con pros cons advantage advantages
    disadvantage disadvantages benefit benefits drawback drawbacks safe unsafe legal illegal possible impossible true
    false yes left right north south east west hot cold warm cool rich richer poor poorer big bigger small smaller large
    larger long longer short shorter old older young younger new newer fast faster slow slower cheap cheaper expensive
    man men woman women male female boy girl he she him her his hers encrypt decrypt encode decode install uninstall
    connect disconnect accept reject allow deny from against cause effect oldest newest longest shortest biggest
    smallest fastest slowest all any some every each only
""")
TURNING: Final = NUMBERS | NEGATIONS | DATES | OPPOSITES
OPENERS: Final = words("""
    a an the what who whom whose which when where why how is are am was were be do does did can could shall should will
    would may might must have has had i you we they it he she this that these those there here please tell give show
    explain describe define list name write make create summarize summarise compare translate find calculate help let
    if and or but so then also as at by for from in of on to with about into my your our their its me us them
""")
"""Function words: with a capital at the start of a sentence they are not names, and they carry little meaning."""

ENGLISH: Final = words("""
    the what who whom whose which where why how are were does did could should would there here these those this that
    it its she they you your our their please tell give explain write make summarize summarise translate find help if
    and from with about into
""")
"""Words that hardly occur in other languages."""
SHORT: Final = 40
"""Maximum number of words and signs of a short answer, which makes a single statement."""
YES: Final = words("yes true correct right")
NO: Final = words("no false incorrect wrong")


def alike(one: str, other: str) -> bool:
    """Whether two questions agree in all that changes an answer: numbers, names, dates, negations, opposites, roles."""
    if len(one) > LONGEST or len(other) > LONGEST:
        return False
    (marks, said, known), (others, also_said, also_known) = read(one), read(other)
    if marks != others:
        return False
    if not (known and also_known):  # the word lists above do not cover other languages
        return said == also_said
    # The same words in another order can mean something else: "the dog bites the man".
    return said == also_said or sorted(said) != sorted(also_said)


def at_odds(one: str, other: str) -> bool:
    """Whether two answers to one question contradict each other, even if their vectors are similar.

    They do if one begins with yes and the other with no; or if both are short, both contain names or numbers, and
    none of these occurs in the other answer.
    """
    pieces, others = ([piece.lower() for piece in PIECE.findall(text)] for text in (one, other))
    first, second = (next(iter(several), "") for several in (pieces, others))
    if (first in YES and second in NO) or (first in NO and second in YES):
        return True
    if len(pieces) > SHORT or len(others) > SHORT:
        return False
    names, also_names = names_in(one), names_in(other)
    return bool(names and also_names) and names.isdisjoint(others) and also_names.isdisjoint(pieces)


def names_in(text: str) -> set[str]:
    """The names and numbers in a text, in lower case.  The first word of a sentence never counts as a name."""
    found, fresh = set[str](), True
    for piece in PIECE.findall(text):
        if not piece[0].isalnum():
            fresh = piece in ENDS
            continue
        if piece[0].isdigit() or (piece[0].isupper() and not fresh and piece.lower() not in OPENERS):
            found.add(piece.lower())
        fresh = False
    return found


@lru_cache(4096)
def read(text: str) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """The marks of a question (see `is_mark`), sorted; its content words, in order; and whether it is English."""
    marks, said, fresh, english = list[str](), list[str](), True, False
    for piece in PIECE.findall(text):
        word = piece.lower().replace("\u2019", "'")
        if not piece[0].isalnum():
            fresh = piece in ENDS
            marks += [piece] if piece in SIGNS else []
            continue
        if is_mark(piece, word, fresh):
            marks.append("not" if word.endswith("n't") or word == "cannot" else word)
        if word not in OPENERS:
            said.append(word)
        english = english or word in ENGLISH
        fresh = False
    return tuple(sorted(marks)), tuple(said), english


def is_mark(piece: str, word: str, fresh: bool) -> bool:
    """Whether a word can change the answer: a number, a name, a negation, an opposite.  fresh: it begins a sentence."""
    if piece[0].isdigit() or piece[-1].isdigit() or word in TURNING or word.endswith("n't"):
        return True
    if piece[1:] != piece[1:].lower():
        return True
    return piece[0].isupper() and word != "i" and (not fresh or word not in OPENERS)
