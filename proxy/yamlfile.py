"""Reads YAML with the line number of every value, and with environment variables in `${…}` replaced."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from proxy import advice
from proxy.advice import Place
from proxy.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)
BOOL = "tag:yaml.org,2002:bool"
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}")


class Loader(yaml.SafeLoader):
    """Only `true` and `false` are booleans, as in YAML 1.2: `on` is a setting, and `no` can be a caller's name."""


class Quick(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same in a seventh of the time if PyYAML was built with libyaml, but with less helpful error messages."""


for _kind in (Loader, Quick):
    _kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != BOOL]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _kind.add_implicit_resolver(BOOL, re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF"))


def _parsed(text: str) -> tuple[Any, yaml.Node | None]:
    """The loader, which can construct the data, and the parsed document.  Raises YAMLError."""
    try:
        return (quick := Quick(text)), quick.get_single_node()
    except yaml.YAMLError:
        loader = Loader(text)
        return loader, loader.get_single_node()


class Source:
    """A YAML text: its data, and the line of every place in it.

    `${NAME}` and `${NAME:-default}` are replaced inside scalars, so that no value can add structure.
    problems: unset variables and duplicate keys, to be raised together with all other problems of the file.
    Raises ConfigError if the text is not valid YAML.
    """

    def __init__(self, name: str, text: str, env: Mapping[str, str]) -> None:
        self.name = name
        self.text = text
        self.problems: list[str] = []
        self.unset: dict[str, list[int]] = {}
        """The lines where each unset variable occurs."""
        self.data: Any = {}
        self.lines: Mapping[Place, int] = {}
        try:
            loader, node = _parsed(text)
            if node is not None:
                self._fill(loader, node, env)
                self.problems += [self._missing(name, lines, env) for name, lines in self.unset.items()]
                self.data = loader.construct_document(node)
                self.lines = dict(_lines(node, ()))
        except yaml.MarkedYAMLError as error:
            raise ConfigError([self._syntax(error, text)]) from None
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # odd characters, dates, keys, loops
            raise ConfigError([f"{name}:1: not a configuration: {str(error).splitlines()[0]}"]) from None

    def problem(self, place: Place, message: str) -> str:
        """A problem as one line of text: file, line, path, what is wrong."""
        line = next((self.lines[place[:n]] for n in range(len(place), -1, -1) if place[:n] in self.lines), 1)
        return f"{self.name}:{line}: {'.'.join(map(str, place)) or 'the file'}: {message}"

    def check(self, model: type[Model], data: Any, at: Place = ()) -> Model:
        """`data` as a `model`; raises ConfigError with every problem found in it."""
        try:
            return model.model_validate(data)
        except ValidationError as error:
            found = advice.advised(model, data, error.errors())
            problems = [self.problem((*at, *place), text) for place, text in found]
            raise ConfigError(list(dict.fromkeys(problems))) from None

    def _fill(self, loader: Any, node: yaml.Node, env: Mapping[str, str]) -> None:
        """Replace environment variables in all values, not in keys, and note duplicate keys."""
        match node:
            case yaml.ScalarNode(value=text) if "${" in text:
                node.value = VARIABLE.sub(lambda found: self._value(found, node, env), text)
                # An unquoted ${PORT} may become a number.  `loader` is Any because yaml's types lack `resolve`.
                if not node.style:
                    node.tag = loader.resolve(yaml.ScalarNode, node.value, (True, False))
            case yaml.SequenceNode(value=items):
                for item in items:
                    self._fill(loader, item, env)
            case yaml.MappingNode(value=pairs):
                self._no_doubles(pairs)
                for _, value in pairs:
                    self._fill(loader, value, env)

    def _value(self, found: re.Match[str], node: yaml.Node, env: Mapping[str, str]) -> str:
        # As in a shell, the default after `:-` is also used if the variable is set but empty.
        value = env.get(found["name"]) or found["default"]
        if value is None:
            self.unset.setdefault(found["name"], []).append(node.start_mark.line + 1)
        return value or ""

    def _missing(self, name: str, lines: list[int], env: Mapping[str, str]) -> str:
        first, *others = dict.fromkeys(lines)
        also = f" (also on line {', '.join(map(str, others))})" if others else ""
        return f"{self.name}:{first}: environment variable {name} is {'empty' if name in env else 'not set'}{also}"

    def _no_doubles(self, pairs: list[tuple[yaml.Node, yaml.Node]]) -> None:
        seen = set()
        for key, _ in pairs:
            if key.value in seen:
                line = key.start_mark.line + 1
                self.problems.append(f"{self.name}:{line}: {key.value}: this key occurs twice")
            seen.add(str(key.value))

    def _syntax(self, error: yaml.MarkedYAMLError, text: str) -> str:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        hint = " (put quotes around ${…} inside {…})" if "${" in "".join(text.splitlines()[line : line + 1]) else ""
        return f"{self.name}:{line + 1}: not YAML: {error.problem or error.context}{hint}"


def _lines(node: yaml.Node, place: Place) -> Iterator[tuple[Place, int]]:
    yield place, node.start_mark.line + 1
    match node:
        case yaml.MappingNode(value=pairs):
            for key, value in pairs:
                yield from _lines(value, (*place, key.value))
                yield (*place, key.value), key.start_mark.line + 1  # the key's line wins over its value's
        case yaml.SequenceNode(value=items):
            for index, item in enumerate(items):
                yield from _lines(item, (*place, index))
