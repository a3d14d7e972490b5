"""Rewrites a function's JSON schema so that Ollama loses nothing of it.

Ollama parses tool parameters into Go types that keep only type, anyOf, items, description, enum, properties and
required.  Other keywords are therefore written into the description, references are replaced by their targets,
`allOf` is merged, and `oneOf` becomes `anyOf`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from proxy.errors import BadCall
from proxy.types import JSON
from proxy.wire.pointer import pointed

KEPT: Final = frozenset(
    {"type", "description", "const", "enum", "anyOf", "oneOf", "allOf", "properties", "required", "items"}
)
SILENT: Final = frozenset({"title", "$schema", "$id", "$anchor", "$comment", "$defs", "definitions"})
"""Keywords that do not restrict a value.  A title is used as the description if there is none."""
EXAMPLES: Final = frozenset({"default", "examples"})
"""Keywords whose values are data and not schemas."""
NULLS: Final = frozenset({"const", "default"})
"""Keywords for which null is a value; for others some generators write null to mean that they are absent."""
NOTES: Final = SILENT | EXAMPLES | {"description"}
"""Keywords beside a reference that replace those of its target."""
MOST_NODES: Final = 20_000
"""Maximum number of nodes in all tools of a call together."""
MOST_UNFOLDED: Final = 1_000_000
"""Maximum bytes that expanded references and descriptions may add to all tools of a call together."""
DEEPEST: Final = 64


def parameters(schema: Mapping[str, JSON], at: str, budget: Budget | None = None) -> dict[str, JSON]:
    """The `parameters` of a tool in a form that Ollama keeps, and a `description` of what it would drop at the root.

    Raises BadCall if this is not a valid schema, or if references do not exist or expand without bound.
    """
    kept = _Writer(schema, at, budget or Budget()).node(
        {name: value for name, value in schema.items() if name != "title"}, 0
    )
    for name in ("enum", "anyOf"):
        if name in kept:
            also(kept, name, kept.pop(name))
    kind = kept.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise BadCall(f"Invalid '{at}': the schema must be of type object.", param=at, code="invalid_schema")
    # Without properties Ollama would build a schema that llama-server refuses.
    return {"properties": {}, **kept, "type": "object"}


def also(kept: dict[str, JSON], name: str, value: JSON) -> None:
    """Add a keyword that Ollama does not keep to the description."""
    kept["description"] = f"{kept.get('description', '')} ({name}: {orjson.dumps(value).decode()})".strip()


def merge(kept: dict[str, JSON], more: Mapping[str, JSON]) -> None:
    """Add the keywords of `more` to `kept`, so that both apply."""
    for name, value in more.items():
        own: JSON = kept.get(name)
        if name not in kept or own == value:
            kept[name] = value
        elif name == "description":
            kept[name] = f"{own} {value}"
        elif name == "required":
            kept[name] = list(dict.fromkeys([*own, *value]))
        elif name == "properties":
            for key, one in value.items():
                merge(own.setdefault(key, {}), one)
        else:
            also(kept, name, value)


class Budget:
    """The limits of size for all tools of one call together."""

    def __init__(self) -> None:
        self.nodes = 0
        self.bytes = 0

    def count(self, at: str) -> None:
        self.nodes += 1
        if self.nodes > MOST_NODES:
            raise too_large(at)

    def grow(self, size: int, at: str) -> None:
        self.bytes += size
        if self.bytes > MOST_UNFOLDED:
            raise too_large(at)


def too_large(at: str) -> BadCall:
    message = f"'{at}' is too large once its references are written out."
    return BadCall(message, param=at, code="invalid_schema")


class _Writer:
    """Rewrites one schema.  root: the schema in which references are resolved.  at: its field, for errors."""

    def __init__(self, root: Mapping[str, JSON], at: str, budget: Budget) -> None:
        self.root = root
        self.at = at
        self.budget = budget
        self.sizes: dict[str, int] = {}

    def node(self, schema: JSON, depth: int) -> dict[str, JSON]:
        self.budget.count(self.at)
        if depth > DEEPEST:
            raise too_large(self.at)
        if isinstance(schema, bool):  # also a schema, but Ollama accepts only objects
            return {} if schema else {"description": "(never given)"}
        schema = self.of_kind(schema, Mapping, "a schema")
        if "$ref" in schema:
            return self.node(self.resolved(schema), depth + 1)
        return self.kept({name: one for name, one in schema.items() if one is not None or name in NULLS}, depth)

    def kept(self, schema: Mapping[str, JSON], depth: int) -> dict[str, JSON]:
        kept: dict[str, JSON] = {}
        if "type" in schema:
            kept["type"] = schema["type"]
        if described := self.described(schema, depth):
            kept["description"] = described
        if "enum" in schema:
            kept["enum"] = self.of_kind(schema["enum"], list, "'enum'")
        if "const" in schema:
            merge(kept, {"enum": [schema["const"]]})
        self.nested(schema, kept, depth)
        return kept

    def nested(self, schema: Mapping[str, JSON], kept: dict[str, JSON], depth: int) -> None:
        if "properties" in schema:
            properties = self.of_kind(schema["properties"], Mapping, "'properties'")
            kept["properties"] = {name: self.node(one, depth + 1) for name, one in properties.items()}
        if "required" in schema:
            kept["required"] = self.names(schema["required"])
        if isinstance(items := schema.get("items"), list):
            kept["items"] = [self.node(one, depth + 1) for one in items]
        elif "items" in schema:
            kept["items"] = self.node(items, depth + 1)
        for name in ("anyOf", "oneOf"):
            if options := [self.node(one, depth + 1) for one in self.of_kind(schema.get(name, []), list, f"'{name}'")]:
                merge(kept, {"anyOf": options})
        for part in self.of_kind(schema.get("allOf", []), list, "'allOf'"):
            merge(kept, self.node(part, depth + 1))

    def names(self, value: JSON) -> list[str]:
        return [self.of_kind(name, str, "a name in 'required'") for name in self.of_kind(value, list, "'required'")]

    def described(self, schema: Mapping[str, JSON], depth: int) -> str:
        said = [str(schema.get("description") or schema.get("title") or "")]
        others = [name for name in schema if name not in KEPT and name not in SILENT]
        hints = [f"{name}: {self.words(name, schema[name], depth)}" for name in others]
        return " ".join([*said, *([f"({', '.join(hints)})"] if hints else [])]).strip()

    def words(self, name: str, value: JSON, depth: int) -> str:
        words = orjson.dumps(value if name in EXAMPLES else self.written_out(value, depth)).decode()
        self.budget.grow(len(words), self.at)
        return words

    def written_out(self, value: JSON, depth: int) -> JSON:
        if depth > DEEPEST:
            raise too_large(self.at)
        self.budget.count(self.at)
        if isinstance(value, list):
            return [self.written_out(one, depth + 1) for one in value]
        if not isinstance(value, Mapping):
            return value
        if isinstance(value.get("$ref"), str):
            beside = {name: one for name, one in value.items() if name != "$ref"}
            return self.written_out({**self.target(value["$ref"]), **beside}, depth + 1)
        return {name: self.written_out(one, depth + 1) for name, one in value.items()}

    def resolved(self, schema: Mapping[str, JSON]) -> Mapping[str, JSON]:
        """The target of a reference, combined with the keywords beside the reference."""
        target = self.target(schema["$ref"])
        beside = {name: value for name, value in schema.items() if name != "$ref"}
        if any(name in target and name not in NOTES for name in beside):
            return {"allOf": [beside, target]}
        return {**target, **beside}

    def target(self, ref: JSON) -> Mapping[str, JSON]:
        if not isinstance(ref, str):
            raise self.lost(ref)
        try:
            found = pointed(self.root, ref)
        except LookupError:
            raise self.lost(ref) from None
        if not isinstance(found, Mapping):
            raise self.lost(ref)
        if ref not in self.sizes:
            self.sizes[ref] = len(orjson.dumps(found))
        self.budget.grow(self.sizes[ref], self.at)
        return found

    def of_kind(self, value: JSON, kind: type, what: str) -> Any:
        if not isinstance(value, kind):
            message = f"Invalid '{self.at}': {what} is not valid at this place of a JSON schema."
            raise BadCall(message, param=self.at, code="invalid_schema")
        return value

    def lost(self, ref: JSON) -> BadCall:
        message = f"Invalid '{self.at}': the reference {str(ref)[:80]!r} does not exist in this schema."
        return BadCall(message, param=self.at, code="invalid_schema")
