"""Warnings about templates that can be rendered, but hardly do what was intended."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from plugins.templates import text
from plugins.templates.document import Document
from plugins.templates.shaped import holes
from plugins.templates.text import Put, Section

STABLE: Final = 200
"""Constant characters allowed after the first variable, such as closing tags; more would miss the prompt cache."""
LONG: Final = 1000
"""From this length, a text is assumed to be somebody else's content and not a setting."""
FENCES: Final = ">`\"'“«-=#|"
"""Characters before a variable that set it apart from the instructions."""
BRACES: Final = re.compile(r"(?<!\{)\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}(?!\})")


def warnings(document: Document) -> Iterator[str]:
    """The warnings, without the template's name."""
    if not document.description:
        yield "it has no description"
    if document.variables and not document.example:
        yield "it has no example"
    nodes = [
        (*place, index) for index, turn in enumerate(document.messages) for place in text.walk(text.parse(turn.content))
    ]
    used = {node.name for node, _, _ in nodes if not isinstance(node, str)} | set(holes(document.answer_schema))
    for name in document.variables:
        if name not in used:
            yield f"the variable '{name}' is used nowhere"
    yield from order(nodes)
    yield from alone(document, nodes)
    yield from single_braces(document)


Place = tuple[str | Put | Section, tuple[Section, ...], int]
"""A node, the sections around it, and the index of its message."""


def order(nodes: list[Place]) -> Iterator[str]:
    """Constant text belongs before variable text: the model's prompt cache only covers a common prefix."""
    first, behind = None, 0
    for node, around, index in nodes:
        if not isinstance(node, str):
            first = first or (node.name, index)
        elif first and not around:
            behind += len(node.strip())
    if first and behind > STABLE:
        name, index = first
        yield (
            f"messages[{index}]: {behind} letters that never change stand behind '{name}', which does; put them "
            "before it, so that the model's prompt cache is hit"
        )


def alone(document: Document, nodes: list[Place]) -> Iterator[str]:
    """Optional values outside of a section, and free text that nothing sets apart."""
    before = ""
    for node, around, index in nodes:
        if isinstance(node, str):
            before = node.rstrip() or before
        elif isinstance(node, Put) and (variable := document.variables.get(name_of(node, around))):
            name = name_of(node, around)
            if variable.optional and not any(one.name == name for one in around):
                yield f"messages[{index}]: '{name}' is optional and stands outside of a section of its own"
            free = variable.type == "string" and (variable.max_length is None or variable.max_length > LONG)
            if free and before[-1:] not in FENCES:
                yield f"messages[{index}]: nothing sets '{name}' apart from the instructions; put it between tags"


def name_of(node: Put, around: tuple[Section, ...]) -> str:
    return around[-1].name if node.name == text.ITEM and around else node.name


def single_braces(document: Document) -> Iterator[str]:
    for index, turn in enumerate(document.messages):
        for name in dict.fromkeys(BRACES.findall(turn.content)):
            if name in document.variables:
                yield f"messages[{index}]: '{{{name}}}' is text; the variable is '{{{{{name}}}}}'"
