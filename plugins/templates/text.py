"""The template language: Mustache without lambdas, partials and set delimiters.  Nothing in it can be executed.

`{{name}}` inserts a value; `{{#name}}…{{/name}}` is rendered if there is one, once per item of a list, where `{{.}}`
is the item and `{{@number}}` its number, from 1; `{{^name}}…{{/name}}` is rendered if there is none; `{{! … }}` is a
comment; `\\{{` is a literal `{{`.
Source: mustache(5), https://mustache.github.io/mustache.5.html.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeGuard

OPEN: Final = "{{"
CLOSE: Final = "}}"
ITEM: Final = "."
NUMBER: Final = "@number"
NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
DEEPEST: Final = 8
"""Maximum depth of nested sections."""
STEPS: Final = 200_000
"""Maximum pieces of all messages, whatever their length: some 50 ms, during which the event loop is blocked."""

Item: TypeAlias = str | int | float | bool
Value: TypeAlias = Item | Sequence[Item] | None
"""None: an optional variable that was not given."""


class Malformed(ValueError):
    """A syntax error in a template; the message names the line."""


class TooLong(ValueError):
    """The rendered text would be too long, or have too many pieces."""


@dataclass(frozen=True, slots=True)
class Put:
    """A value is inserted here; `.` is the item of the enclosing section, `@number` its number."""

    name: str


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    inverted: bool
    nodes: tuple[Node, ...]


Node: TypeAlias = str | Put | Section
Nodes: TypeAlias = tuple[Node, ...]


# --- parsing ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Unclosed:
    """A section that is not closed yet; the whole text is one without a name."""

    name: str = ""
    inverted: bool = False
    line: int = 0
    nodes: list[Node] = field(default_factory=list)


def parse(text: str) -> Nodes:
    """Raises Malformed.  A single pass, in linear time."""
    stack = [Unclosed()]
    for line, piece in pieces(text):
        if not isinstance(piece, Tag):
            stack[-1].nodes.append(piece)
        elif piece.sign == "/":
            close(stack, piece.name, line)
        elif piece.sign in ("#", "^"):
            open_(stack, piece, line)
        else:
            put(stack, piece.name, line)
    if len(stack) > 1:
        raise Malformed(f"line {stack[-1].line}: the section '{stack[-1].name}' is not closed")
    return tuple(stack[0].nodes)


def open_(stack: list[Unclosed], tag: Tag, line: int) -> None:
    if any(one.name == tag.name for one in stack):
        raise Malformed(f"line {line}: the section '{tag.name}' is nested in itself")
    if len(stack) > DEEPEST:
        raise Malformed(f"line {line}: more than {DEEPEST} nested sections")
    stack.append(Unclosed(tag.name, tag.sign == "^", line))


def close(stack: list[Unclosed], name: str, line: int) -> None:
    if stack[-1].name != name:
        inside = f"; the one under way is '{stack[-1].name}'" if stack[-1].name else ""
        raise Malformed(f"line {line}: {{{{/{name}}}}} closes no section{inside}")
    done = stack.pop()
    stack[-1].nodes.append(Section(done.name, done.inverted, tuple(done.nodes)))


def put(stack: list[Unclosed], name: str, line: int) -> None:
    if name == ITEM and not any(one.name and not one.inverted for one in stack):
        raise Malformed(f"line {line}: {{{{.}}}} is the item of a list's section, but there is no section around it")
    stack[-1].nodes.append(Put(name))


@dataclass(frozen=True, slots=True)
class Tag:
    sign: str
    name: str


def pieces(text: str) -> Iterator[tuple[int, str | Tag]]:
    """Texts and tags, with the lines in which they begin."""
    at, line = 0, 1
    while (start := text.find(OPEN, at)) >= 0:
        slashes = start - len(text[at:start].rstrip("\\")) - at
        before = text[at : start - slashes] + "\\" * (slashes // 2)
        line += before.count("\n")
        if slashes % 2:
            yield line, before + OPEN
            at = start + len(OPEN)
            continue
        end = text.find(CLOSE, start)
        if end < 0:
            raise Malformed(f"line {line}: '{{{{' is not closed; a literal one is written '\\{{{{'")
        tag = tag_of(text[start + len(OPEN) : end], line)
        at = end + len(CLOSE)
        alone = tag is None or bool(tag.sign)
        if alone and (after := rest_of_line(text, at)) is not None and is_blank_since_newline(text, start):
            before, at = before.rstrip(" \t"), after
        if before:
            yield line, before
        if tag is not None:
            yield line, tag
        line += text.count("\n", start, at)
    if at < len(text):
        yield line, text[at:]


def tag_of(inside: str, line: int) -> Tag | None:
    """None for a comment."""
    inside = inside.strip()
    if inside.startswith("!"):
        return None
    sign, name = (inside[0], inside[1:].strip()) if inside[:1] in ("#", "^", "/") else ("", inside)
    if not NAME.fullmatch(name) and (sign or name not in (ITEM, NUMBER)):
        shown = inside[:40]
        raise Malformed(f"line {line}: '{{{{{shown}}}}}' is not a tag: a name is up to 64 letters, digits and '_'")
    return Tag(sign, name)


def rest_of_line(text: str, at: int) -> int | None:
    """The start of the next line if only blanks precede it."""
    while at < len(text) and text[at] in " \t":
        at += 1
    if at == len(text):
        return at
    return at + 1 if text[at] == "\n" else None


def is_blank_since_newline(text: str, at: int) -> bool:
    while at and text[at - 1] in " \t":
        at -= 1
    return not at or text[at - 1] == "\n"


# --- rendering -------------------------------------------------------------------------------------


class Page:
    """The text rendered so far.

    left: characters that may still be written; steps: pieces likewise, because empty ones take time, too.
    """

    def __init__(self, most: int) -> None:
        self.parts: list[str] = []
        self.left = most
        self.steps = STEPS

    def write(self, text: str) -> None:
        """Raises TooLong before it uses the memory."""
        self.left -= len(text)
        self.steps -= 1
        if self.left < 0 or self.steps < 0:
            raise TooLong
        self.parts.append(text)

    def torn(self) -> str:
        """Take the text; the next one starts empty, with the remaining room."""
        text = "".join(self.parts)
        self.parts.clear()
        return text


def render(nodes: Nodes, values: Mapping[str, Value], page: Page) -> str:
    """The text with the values inserted; these are never parsed as templates.  Raises TooLong if the page is full."""
    write(nodes, values, (None, 0), page)
    return page.torn()


def write(nodes: Nodes, values: Mapping[str, Value], at: tuple[Value, int], page: Page) -> None:
    """at: the item of the enclosing section, and its number in the list."""
    for node in nodes:
        if isinstance(node, str):
            page.write(node)
        elif isinstance(node, Put):
            page.write(spelled(here(node.name, values, at)))
        else:
            value = values.get(node.name)
            for number, one in enumerate(turns(node, value), 1):
                page.write("")  # an iteration counts as a step even if it writes nothing
                inside = at if node.inverted else (one, number if is_list(value) else at[1])
                write(node.nodes, values, inside, page)


def here(name: str, values: Mapping[str, Value], at: tuple[Value, int]) -> Value:
    return at[0] if name == ITEM else at[1] if name == NUMBER else values.get(name)


def turns(section: Section, value: Value) -> Sequence[Value]:
    """The values for which a section is rendered: every item of a list, or the value itself unless it is empty."""
    there = is_there(value)
    if section.inverted:
        return () if there else (None,)
    if is_list(value):
        return value
    return (value,) if there else ()


def is_list(value: Value) -> TypeGuard[Sequence[Item]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def is_there(value: Value) -> bool:
    """0 counts as a value; None, `false`, an empty text and an empty list do not."""
    return not (value is None or value is False or value == "" or value == [] or value == ())


def spelled(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    return ", ".join(map(spelled, value))


# --- inspection ------------------------------------------------------------------------------------


def walk(nodes: Nodes, inside: tuple[Section, ...] = ()) -> Iterator[tuple[str | Put | Section, tuple[Section, ...]]]:
    """Every node in order, with the sections around it, outermost first."""
    for node in nodes:
        yield node, inside
        if isinstance(node, Section):
            yield from walk(node.nodes, (*inside, node))
