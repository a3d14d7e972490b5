"""Tools as Ollama parses them, and whether a message asks for one."""

import re
from dataclasses import dataclass
from typing import Any

from .decode import checked, unfit
from .go_format import type_name
from .schema import instance

PARAMETERS = ("type", "$defs", "items", "required", "properties")
PROPERTY = ("anyOf", "type", "items", "description", "enum", "properties", "required")
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    description: str = ""
    parameters: Schema | None = None
    """The part that Ollama keeps; None if there are no properties."""

    def meant_by(self, text: str) -> bool:
        """Whether the text contains the tool's name, or every word of it."""
        if not self.name or self.name.lower() in text.lower():
            return bool(self.name)
        said = {word.lower() for word in WORD.findall(text)}
        words = {word.lower() for word in WORD.findall(self.name)}
        return bool(words) and words <= said

    def arguments(self) -> dict[str, Any]:
        made = instance({"type": "object", **(self.parameters or {})})
        return made if isinstance(made, dict) else {}


def tool_of(value: Any) -> Tool:
    if not isinstance(value, dict):
        raise unfit(type_name(value), "ChatRequest.tools", "api.Tool")
    function = checked(value.get("function"), dict, ".tools.function") or {}
    name = checked(function.get("name"), str, ".tools.function.name") or ""
    description = checked(function.get("description"), str, ".tools.function.description") or ""
    return Tool(name, description, _parameters(function.get("parameters")))


def _parameters(value: Any) -> Schema | None:
    where = ".tools.function.parameters"
    given = checked(value, dict, where) or {}
    kept = {key: given[key] for key in PARAMETERS if given.get(key) is not None}
    if "properties" in kept:
        kept["properties"] = _properties(kept["properties"], f"{where}.properties")
    return kept if "properties" in kept else None


def _properties(value: Any, where: str) -> Schema:
    checked(value, dict, where)
    return {name: _property(item, where) for name, item in (value or {}).items()}


def _property(value: Any, where: str) -> Schema:
    """Ollama keeps a typed subset; it drops defaults, $ref, oneOf, const, formats and bounds."""
    if not isinstance(value, dict):
        raise unfit(type_name(value), where, "api.ToolProperty")
    kept = {key: value[key] for key in PROPERTY if value.get(key) is not None}
    if "properties" in kept:
        kept["properties"] = _properties(kept["properties"], where)
    if "anyOf" in kept:
        kept["anyOf"] = [_property(item, where) for item in checked(kept["anyOf"], list, where)]
    return kept
