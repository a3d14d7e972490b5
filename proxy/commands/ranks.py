"""The quality of a search: questions with their right results, ranks, and metrics computed from them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

from proxy.errors import ConfigError

FIELDS: Final = ("question", "document", "answer")
COLOURS: Final = ("#4c78a8", "#f58518", "#54a24b")
WIDE: Final = 640
HIGH: Final = 360
EDGE: Final = 50


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its right result, which must match all that is given.

    document: id, title or source of the result.  answer: text that the result contains.
    """

    text: str
    document: str = ""
    answer: str = ""

    def fits(self, found: Mapping[str, Any]) -> bool:
        """Whether a search result is the right one; ignores case and white space."""
        names = [plain(str(found.get(name) or "")) for name in ("document_id", "title", "source")]
        return (not self.document or plain(self.document) in names) and (
            not self.answer or plain(self.answer) in plain(str(found["content"]))
        )


def plain(text: str) -> str:
    return " ".join(text.split()).casefold()


@dataclass(frozen=True, slots=True)
class Figures:
    """Metrics of several questions.

    hits: for each rank, the share of questions whose right result has this rank or a better one, from 0 to 1.
    mrr, ndcg: mean reciprocal rank and nDCG, with one right result per question.
    """

    hits: Sequence[float]
    mrr: float
    ndcg: float

    def hit(self, most: int) -> float:
        return self.hits[min(most, len(self.hits)) - 1]


def figures(ranks: Sequence[int], top: int) -> Figures:
    """The metrics.  ranks: of the first right result of each question, from 1; 0 if it is not among the first `top`."""
    count = len(ranks)
    right = [rank for rank in ranks if 0 < rank <= top]
    hits = [sum(rank <= most for rank in right) / count for most in range(1, top + 1)]
    return Figures(
        hits, sum(1 / rank for rank in right) / count, sum(1 / math.log2(rank + 1) for rank in right) / count
    )


def read(file: Path) -> list[Question]:
    """The questions in a CSV file with a header line, or in a file with one JSON object per line.

    Raises ConfigError with all problems.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{file}: {error}"]) from None
    rows = csv_rows(text) if file.suffix.lower() == ".csv" else json_rows(text)
    questions, problems = list[Question](), list[str]()
    for line, row in rows:
        made = question_of(row)
        if isinstance(made, str):
            problems.append(f"{file}:{line}: {made}")
        else:
            questions.append(made)
    if not questions and not problems:
        problems.append(f"{file}: there is no question in it")
    if problems:
        raise ConfigError(problems)
    return questions


def csv_rows(text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(text.splitlines(keepends=True))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        yield reader.line_num, str(error)


def json_rows(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                yield number, f"no JSON: {error}"


def question_of(row: Any) -> Question | str:
    """The question in a row, or a text that says what is wrong with the row."""
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        return "it is no object"
    told = {name: row.get(name) or "" for name in FIELDS}
    if wrong := [name for name, value in told.items() if not isinstance(value, str)]:
        return f"'{wrong[0]}' is no text"
    if not told["question"].strip():
        return "'question' is missing"
    if not told["document"].strip() and not told["answer"].strip():
        return "'document' or 'answer' is missing: what should be found"
    return Question(*(told[name] for name in FIELDS))


def plot(found: Mapping[str, Figures]) -> str:
    """An SVG chart: for each way of searching, the share of questions answered by the first 1, 2, 3, … results."""
    top = max(len(one.hits) for one in found.values())

    def place(rank: int, share: float) -> str:
        across = EDGE + (rank - 1) * (WIDE - 2 * EDGE) / max(1, top - 1)
        return f"{across:.1f},{HIGH - EDGE - share * (HIGH - 2 * EDGE):.1f}"

    parts = [f'<rect width="{WIDE}" height="{HIGH}" fill="#fff"/>']
    for tenth in range(0, 11, 2):
        left, right = place(1, tenth / 10), place(top, tenth / 10)
        parts.append(f'<polyline points="{left} {right}" stroke="#ddd"/>')
        parts.append(label(left, f"{tenth / 10:.1f}", "end", -8, 4))
    parts += [label(place(rank, 0), str(rank), "middle", 0, 18) for rank in range(1, top + 1)]
    parts.append(label(f"{WIDE / 2},{HIGH - 12}", "results looked at", "middle", 0, 0))
    for number, (name, one) in enumerate(found.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(place(rank, share) for rank, share in enumerate(one.hits, 1))
        parts.append(f'<polyline points="{line}" stroke="{colour}" stroke-width="2.5" fill="none"/>')
        legend = f"{WIDE / 2 + 110 * (number - len(found) / 2)},{EDGE - 25}"
        parts.append(label(legend, name, "start", 0, 0, colour))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {HIGH}" font-family="sans-serif" font-size="13">'
    )
    return "\n".join([head, "<title>hits by results looked at</title>", *parts, "</svg>\n"])


def label(at: str, text: str, anchor: str, right: float, down: float, colour: str = "#444") -> str:
    across, along = (float(one) for one in at.split(","))
    where = f'x="{across + right:.1f}" y="{along + down:.1f}"'
    return f'<text {where} text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
