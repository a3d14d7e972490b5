"""Templates in YAML: one per document, or a list under `templates`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml
from pydantic import ValidationError

from plugins.templates.document import Document
from proxy.types import JSON

LARGEST: Final = 4 * 1024 * 1024
"""Maximum characters of a text."""
MOST: Final = 1000
"""Maximum templates of a text."""
DEEPEST: Final = 64
PLAIN: Final = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
BREAKS: Final = re.compile("[\x85\u2028\u2029]")
"""Line breaks of YAML 1.1 that are read back as other ones unless they are escaped."""
Place = tuple[str | int, ...]


class Unreadable(ValueError):
    """All problems of a text, each with its line."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml's if it is installed
    """Only `true` and `false` are booleans, and nothing is a date: all else stays text."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in PLAIN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(PLAIN[0], re.compile(r"(?:true|false)\Z"), list("tf"))


class Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and no references, because `read` accepts none."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, given: str) -> yaml.ScalarNode:
    style = '"' if BREAKS.search(given) else "|" if "\n" in given else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", given, style=style)


Dumper.add_representer(str, _text)


def read(name: str, text: str) -> list[Document]:
    """name: of the file, for messages.  Raises Unreadable."""
    try:
        found = list(_documents(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise Unreadable([f"{name}:{line}: not YAML: {error.problem or error.context}"]) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise Unreadable([f"{name}:1: {(str(error) or 'not YAML').splitlines()[0][:300]}"]) from None
    made, problems = [], []
    for node, data in found:
        try:
            made.append(Document.model_validate(data))
        except ValidationError as error:
            lines = dict(_lines(node, ()))
            problems += [f"{name}:{_line(lines, place)}: {words}" for place, words in faults(error)]
    if problems:
        raise Unreadable(problems)
    return made


def faults(error: ValidationError) -> Iterator[tuple[Place, str]]:
    """Each problem: its place, and a message."""
    found = error.errors()
    for one in found:
        if one["type"] == "too_short" and any(is_within(other["loc"], one["loc"]) for other in found):
            continue  # a consequence of the error inside of it
        place = tuple(step for step in one["loc"] if step != "[key]")
        words = {"extra_forbidden": "there is no such field", "missing": "this field is required"}.get(
            one["type"], one["msg"].removeprefix("Value error, ")
        )
        yield place, f"{'.'.join(map(str, place))[:200] or 'the template'}: {words}"


def is_within(place: Place, outer: Place) -> bool:
    return len(place) > len(outer) and place[: len(outer)] == outer


def _documents(text: str) -> Iterator[tuple[yaml.Node, JSON]]:
    if len(text) > LARGEST:
        raise ValueError(f"longer than {LARGEST} characters")
    _check(text)
    loader, left = Loader(text), MOST
    try:
        while loader.check_node():
            for node in _each(loader.get_node()):
                _no_doubles(node)
                yield node, loader.construct_document(node)
                left -= 1
                if left < 0:
                    raise ValueError(f"more than {MOST} templates")
    finally:
        loader.dispose()


def _check(text: str) -> None:
    """Raises ValueError for references, with which a small text could expand enormously, and for extreme nesting."""
    depth = 0
    for event in yaml.parse(text, Loader):
        if isinstance(event, yaml.AliasEvent):
            at = event.start_mark.line + 1 if event.start_mark else 1
            raise ValueError(f"line {at}: references (*{event.anchor}) are not supported")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} levels deep")


def _no_doubles(node: yaml.Node) -> None:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key.value, str) and key.value in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: {key.value[:100]}: this key occurs twice")
            seen.add(str(key.value))
            _no_doubles(value)
    elif isinstance(node, yaml.SequenceNode):
        for one in node.value:
            _no_doubles(one)


def _each(node: yaml.Node) -> Iterator[yaml.Node]:
    """The templates of a document: a list, a list under `templates`, or the document itself."""
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
        return
    if isinstance(node, yaml.MappingNode) and len(node.value) == 1:
        key, value = node.value[0]
        if key.value == "templates" and isinstance(value, yaml.SequenceNode):
            yield from value.value
            return
    yield node


def _lines(node: yaml.Node, place: Place) -> Iterator[tuple[Place, int]]:
    yield place, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _lines(value, (*place, str(key.value)))
            yield (*place, str(key.value)), key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _lines(item, (*place, index))


def _line(lines: Mapping[Place, int], place: Place) -> int:
    return next((lines[place[:n]] for n in range(len(place), -1, -1) if place[:n] in lines), 1)


def write(documents: list[dict[str, JSON]]) -> str:
    """YAML in the format that `read` accepts."""
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 110}
    written: str = yaml.dump({"templates": documents}, Dumper=Dumper, **options)
    return written
