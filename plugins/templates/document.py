"""A template as it is written in YAML or JSON, and its validation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveInt,
    StringConstraints,
    ValidationInfo,
    model_validator,
)

from plugins.templates import text, variables
from plugins.templates.plain import check_plain
from plugins.templates.shaped import holes
from plugins.templates.variables import Variable
from proxy.config import Strict
from proxy.errors import BadCall
from proxy.types import JSON
from proxy.wire.openai_fields import SAMPLING
from proxy.wire.schema_weight import Weight

PREFIX: Final = "tpl_"
"""Prefix of ids."""
NAME: Final = re.compile(rf"(?!{PREFIX})[a-z][a-z0-9_-]{{0,63}}")
RESERVED: Final = frozenset({"categories", "popular", "custom", "render", "export", "import"})
"""Names that would collide with endpoints."""
LATEST: Final = "latest"
OTHER: Final = "other"
ALIAS: Final = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
LONGEST: Final = 65_536
"""Maximum size of a template as JSON, in bytes."""
EXAMPLE: Final = 100_000
"""Maximum length of a rendered example, in characters."""
KNOWN: Final = "known"
"""Validation context for a template that was validated when it was stored: skips the expensive checks."""


def check_name(name: str) -> str:
    """Raises ValueError if a template cannot have this name."""
    if not NAME.fullmatch(name) or name in RESERVED:
        raise ValueError(
            f"{name[:100]!r} cannot be a name: up to 64 of a-z, 0-9, '-' and '_', a letter first, and none of "
            + ", ".join(sorted(RESERVED))
        )
    return name


def check_alias(alias: str) -> str:
    """Raises ValueError; `latest` is always the newest version."""
    if not ALIAS.fullmatch(alias) or alias == LATEST:
        raise ValueError(f"{alias[:100]!r} cannot be an alias: up to 64 of a-z, 0-9, '.', '-' and '_', not '{LATEST}'")
    return alias


def check_model(model: str) -> str:
    """Raises ValueError if this names a template instead of a model."""
    if model.startswith("template:"):
        raise ValueError("`model` is the name of a model, not of another template")
    return model


Name = Annotated[str, AfterValidator(check_name)]
Alias = Annotated[str, AfterValidator(check_alias)]
ModelName = Annotated[str, StringConstraints(max_length=600, pattern=r"^[^\x00]+$"), AfterValidator(check_model)]
Word = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]


def _listed(given: object) -> object:
    """A list of bare names declares variables with default settings."""
    if isinstance(given, list | tuple) and all(isinstance(one, str) for one in given):
        return {one: {} for one in given}
    return given


def _schema(given: JSON) -> JSON:
    """Raises ValueError if this is not a JSON schema, or has references outside itself."""
    import jsonschema_rs  # slow to import, and only needed for schemas

    if given is not None:
        try:
            patterns = jsonschema_rs.FancyRegexOptions(size_limit=Weight(given, "schema").pattern_size(1))
            jsonschema_rs.validator_for(given, retriever=_not_fetched, pattern_options=patterns)
        except (jsonschema_rs.ValidationError, ValueError, BadCall) as error:
            raise ValueError(str(error).splitlines()[0][:300]) from None
    return given


def _not_fetched(uri: str) -> JSON:
    raise ValueError(f"references outside the schema are not fetched: {uri[:200]}")


class Turn(Strict):
    """One message of a template."""

    role: Literal["system", "user", "assistant"] = "user"
    """The message's role."""
    content: str
    """The text, with `{{variables}}`."""


class Document(Strict):
    """One version of a template."""

    name: Name
    """The template's name."""
    version: PositiveInt = 1
    """Numbered from 1; a version never changes."""
    aliases: Annotated[tuple[Alias, ...], Field(max_length=20)] = ()
    """Other names of this version, such as `production`; they can be moved to another version."""
    category: Word = OTHER
    """The category under which it is listed."""
    description: Annotated[str, StringConstraints(max_length=1000)] = ""
    """What it is for."""
    variables: Annotated[
        dict[Annotated[str, StringConstraints(pattern=f"^{text.NAME.pattern}$")], Variable],
        BeforeValidator(_listed),
        Field(max_length=64),
    ] = {}  # noqa: RUF012  (pydantic copies defaults)
    """The variables that it uses, by name."""
    input: str | None = None
    """The variable that takes the caller's first user message if it is not given."""
    messages: Annotated[tuple[Turn, ...], Field(min_length=1, max_length=64)]
    """The messages that are put before the caller's own."""
    model: ModelName | None = None
    """The model to use if the caller names none."""
    parameters: dict[str, Any] = {}  # noqa: RUF012  (pydantic copies defaults)
    """Sampling options, such as `temperature` and `max_tokens`; the caller's own take precedence."""
    answer_schema: Annotated[dict[str, Any] | None, AfterValidator(_schema), Field(alias="schema")] = None
    """A JSON schema that the answer must fit; `enum: ["{{labels}}"]` becomes the items of the list `labels`."""
    example: dict[str, Any] = {}  # noqa: RUF012  (pydantic copies defaults)
    """Variables of an example call."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        """`template: text` is short for a single user message."""
        check_plain(given)
        if isinstance(given, dict) and "template" in given:
            if "messages" in given:
                raise ValueError("'template' is short for 'messages' with one of the user; write only one of them")
            rest = {key: value for key, value in given.items() if key != "template"}
            return {**rest, "messages": [{"role": "user", "content": given["template"]}]}
        return given

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Document:
        if info.context == KNOWN:
            return self
        if len(content_of(self.as_json())) > LONGEST:
            raise ValueError(f"a template has at most {LONGEST} bytes")
        found = [*self._parameters(), *self._texts(), *self._input(), *self._enums()]
        if not found and self.example:
            found += self._example()
        if found:
            raise ValueError("; ".join(found))
        return self

    def _parameters(self) -> Iterator[str]:
        for name, value in self.parameters.items():
            if name not in SAMPLING:
                yield f"parameters.{name[:80]} is not one of {', '.join(SAMPLING)}"
                continue
            try:
                SAMPLING[name](value, f"parameters.{name}")
            except (BadCall, KeyError) as error:
                yield str(error)

    def _texts(self) -> Iterator[str]:
        for index, turn in enumerate(self.messages):
            try:
                nodes = text.parse(turn.content)
            except text.Malformed as error:
                yield f"messages[{index}]: {error}"
                continue
            for node, around in text.walk(nodes):
                if not isinstance(node, str):
                    yield from (f"messages[{index}]: {problem}" for problem in self._node(node, around))

    def _node(self, node: text.Put | text.Section, around: tuple[text.Section, ...]) -> Iterator[str]:
        if node.name == text.NUMBER:
            if not any(map(self._repeats, around)):
                yield f"{{{{{node.name}}}}} is the number of a list's item, and there is no section of a list around it"
        elif node.name != text.ITEM and node.name not in self.variables:
            yield f"'{node.name}' is not under variables"
        elif isinstance(node, text.Section) and self._repeats(node) and any(map(self._repeats, around)):
            yield f"the section '{node.name}' of a list is nested in another list's"

    def _repeats(self, section: text.Section) -> bool:
        variable = self.variables.get(section.name)
        return not section.inverted and variable is not None and variable.type == "list"

    def _input(self) -> Iterator[str]:
        if self.input is not None and getattr(self.variables.get(self.input), "type", None) != "string":
            yield f"input: {self.input[:80]!r} is no variable of type 'string'"

    def _enums(self) -> Iterator[str]:
        for name in holes(self.answer_schema):
            if getattr(self.variables.get(name), "type", None) != "list":
                yield f"schema: an enum of '{name}', which is no variable of type 'list'"

    def _example(self) -> list[str]:
        values, problems = variables.fill(self.variables, self.example)
        if problems:
            return [f"example: {one}" for one in problems]
        page = text.Page(EXAMPLE)
        try:
            for turn in self.messages:
                text.render(text.parse(turn.content), values, page)
        except text.TooLong:
            return ["example: it becomes too long"]
        return []

    def as_json(self) -> dict[str, JSON]:
        """As JSON, without fields that have their default value."""
        whole: dict[str, JSON] = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return {"name": self.name, "version": self.version, **whole}


def content_of(document: Mapping[str, JSON]) -> bytes:
    """What identifies a version's content: everything except its number and aliases."""
    kept = {key: value for key, value in document.items() if key not in ("version", "aliases")}
    return orjson.dumps(kept, option=orjson.OPT_SORT_KEYS)
