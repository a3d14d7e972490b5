"""Reads files of examples: JSON lines, tables or blocks of text, one example at a time, and checks each."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final, TextIO, TypeAlias

import orjson

from plugins.finetuning.examples import Example, example, pair, turns
from proxy.errors import BadCall
from proxy.types import JSON

LONGEST: Final = 4 * 1024 * 1024
"""Maximum bytes of a line, or characters of a block of lines."""
ASK: Final = 10_000
"""Lines (empty ones included) between two checks whether the result is still needed."""
SHOWN: Final = 50
"""Maximum problems reported for a file; further ones are only counted."""
KINDS: Final[Mapping[str, str]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".md": "text",
}
COLUMNS: Final = (("prompt", "completion"), ("input", "output"), ("question", "answer"), ("instruction", "response"))
"""Names of columns for the prompt and the answer."""
SPEAKERS: Final = {"system:": "system", "user:": "user", "assistant:": "assistant"}
Found: TypeAlias = Iterator[tuple[int, Callable[[], Example]]]
"""The number of a line, and a function that parses the example there."""


@dataclass(frozen=True, slots=True)
class Problem:
    """line: 0 for the whole file."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"Line {self.line}: {self.message}" if self.line else self.message


@dataclass(slots=True)
class Report:
    """The contents of a file.  tokens, longest: estimates.  wrong: lines with a problem; not all are in `problems`."""

    format: str = ""
    examples: int = 0
    tokens: int = 0
    longest: int = 0
    longest_line: int = 0
    wrong: int = 0
    problems: list[Problem] = field(default_factory=list)

    def add(self, line: int, found: Example) -> None:
        self.examples += 1
        self.tokens += found.tokens
        if found.tokens > self.longest:
            self.longest, self.longest_line = found.tokens, line

    def complain(self, line: int, why: str) -> None:
        self.wrong += 1
        if len(self.problems) < SHOWN:
            self.problems.append(Problem(line, why[:500]))


def read_file(path: Path, name: str, least: int, target: BinaryIO | None, over: Callable[[], bool]) -> Report:
    """Check a whole file, and write its examples to `target`, one JSON object per line.

    name: the owner's name of the file; its ending is the format.  least: minimum number of examples.  over: whether
    the result is no longer needed.  Blocking; only one example is in memory at a time.
    """
    report = Report(kind_of(path, name))
    try:
        for line, reading in READERS[report.format](path, over):
            if over():
                break
            try:
                found = reading()
            except BadCall as error:
                report.complain(line, str(error))
                continue
            report.add(line, found)
            if target is not None:
                target.write(orjson.dumps(found.document) + b"\n")
    except BadCall as error:
        report.complain(0, str(error))
    if report.examples < least and not report.wrong:
        report.complain(0, f"There are {report.examples} examples, and {least} is the least.")
    return report


def kind_of(path: Path, name: str) -> str:
    ending = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    if ending in KINDS:
        return KINDS[ending]
    with path.open("rb") as file:
        return "jsonl" if file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") else "text"


def json_lines(path: Path, over: Callable[[], bool]) -> Found:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST + 1):
            number += 1
            if number % ASK == 0 and over():
                return
            if len(line) > LONGEST:
                yield number, refusing(f"It is longer than {LONGEST} bytes.")
                while line and not line.endswith(b"\n"):
                    line = file.readline(LONGEST)
            elif line := line.removeprefix(b"\xef\xbb\xbf").strip():
                yield number, reading(line)


def reading(line: bytes) -> Callable[[], Example]:
    def read() -> Example:
        try:
            found: JSON = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise BadCall(f"It is not JSON: {error}.", code="invalid_json") from None
        return example(found)

    return read


def refusing(why: str) -> Callable[[], Example]:
    def read() -> Example:
        raise BadCall(why, code="invalid_value")

    return read


def table(path: Path, over: Callable[[], bool]) -> Found:
    """Rows of a table; the first row has the names of the columns."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(guarded(file, over), delimiter=delimiter(path))
        try:
            names = [name.strip().lower() for name in next(rows, [])]
            asked, answered = columns_of(names)
            for row in rows:
                if any(row):
                    texts = [row[at].strip() if at < len(row) else "" for at in (asked, answered)]
                    yield rows.line_num, partial(pair, dict(zip(("prompt", "completion"), texts, strict=True)))
        except csv.Error as error:
            yield rows.line_num, refusing(f"It is no row of a table: {error}.")


def delimiter(path: Path) -> str:
    """The one of these that is most frequent in the first line."""
    with path.open("rb") as file:
        first = file.readline(LONGEST).decode("utf-8", "replace")
    return max(",;\t", key=first.count)


def columns_of(names: list[str]) -> tuple[int, int]:
    for asked, answered in COLUMNS:
        if asked in names and answered in names:
            return names.index(asked), names.index(answered)
    known = " or ".join(f"'{asked}' and '{answered}'" for asked, answered in COLUMNS)
    raise BadCall(f"The first row names no columns {known}.", code="invalid_value")


def blocks(path: Path, over: Callable[[], bool]) -> Found:
    """Conversations separated by empty lines; each turn begins with its speaker."""
    with path.open(encoding="utf-8-sig") as file:
        block, start, size = list[str](), 0, 0
        for number, line in enumerate(guarded(file, over), 1):
            if line.strip():
                start, size = start or number, size + len(line)
                if size <= LONGEST:
                    block.append(line.rstrip("\n"))
                else:
                    block.clear()
            elif start:
                yield start, spoken(block)
                block, start, size = [], 0, 0
        if start:
            yield start, spoken(block)


def spoken(block: list[str]) -> Callable[[], Example]:
    """block: empty if it was too long to be kept."""
    if not block:
        return refusing(f"The conversation is longer than {LONGEST} characters: separate conversations by empty lines.")

    def read() -> Example:
        said: list[tuple[str, list[str]]] = []
        for line in block:
            first, _, rest = line.partition(" ")
            if role := SPEAKERS.get(first.strip().lower()):
                said.append((role, [rest.strip()]))
            elif said:
                said[-1][1].append(line.rstrip())
            else:
                raise BadCall("A block begins with 'System:', 'User:' or 'Assistant:'.", code="invalid_value")
        return turns([(role, "\n".join(texts).strip()) for role, texts in said])

    return read


def guarded(file: TextIO, over: Callable[[], bool]) -> Iterator[str]:
    """The lines of a file.  Raises BadCall for binary data and for lines that are too long."""
    number = 0
    try:
        while line := file.readline(LONGEST):
            number += 1
            if number % ASK == 0 and over():
                return
            if len(line) == LONGEST or "\0" in line:
                raise BadCall(f"It has NUL bytes, or a line of more than {LONGEST} characters.", code="invalid_value")
            yield line
    except UnicodeDecodeError:
        raise BadCall("It is not UTF-8.", code="invalid_encoding") from None


READERS: Final[Mapping[str, Callable[[Path, Callable[[], bool]], Found]]] = {
    "jsonl": json_lines,
    "csv": table,
    "text": blocks,
}
