"""A function's JSON schema, rewritten so that Ollama loses nothing of it.

Ollama reads tool parameters into types of its own that keep only type, anyOf, items, description, enum,
properties and required.  What else a schema says is put in words into the description, references are
written out, and `oneOf` becomes `anyOf`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import orjson

from proxy.errors import BadCall
from proxy.types import JSON

HINTS: Final = (
    "default", "format", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "minLength", "maxLength", "minItems", "maxItems", "uniqueItems",
)  # fmt: skip
MOST_NODES: Final = 5_000
DEEPEST: Final = 64


def parameters(schema: Mapping[str, JSON], at: str) -> dict[str, JSON]:
    """The `parameters` of a tool as Ollama keeps them.

    Raises BadCall if references are missing, lead elsewhere than into the schema, or unfold without bound.
    """
    if not schema:  # Ollama would turn this into a schema that llama-server refuses
        return {"type": "object", "properties": {}}
    kept = _Writer(schema, at).node(schema, 0)
    kept["type"] = "object"
    kept.setdefault("properties", {})
    return kept


class _Writer:
    def __init__(self, root: Mapping[str, JSON], at: str) -> None:
        self.root = root
        self.at = at
        self.nodes = 0

    def node(self, schema: JSON, depth: int) -> dict[str, JSON]:
        self.nodes += 1
        if self.nodes > MOST_NODES or depth > DEEPEST:
            raise BadCall(f"'{self.at}' is too large once its references are written out.", param=self.at)
        if not isinstance(schema, Mapping):  # `true` and `false` are schemas too; Ollama wants an object
            return {}
        if "$ref" in schema:
            schema = {**self.target(schema["$ref"]), **{k: v for k, v in schema.items() if k != "$ref"}}
            return self.node(schema, depth + 1)
        kept: dict[str, JSON] = {}
        if "type" in schema:
            kept["type"] = schema["type"]
        if described := self.described(schema):
            kept["description"] = described
        if "const" in schema:
            kept["enum"] = [schema["const"]]
        elif "enum" in schema:
            kept["enum"] = schema["enum"]
        self.nested(schema, kept, depth)
        return kept

    def nested(self, schema: Mapping[str, JSON], kept: dict[str, JSON], depth: int) -> None:
        options = schema.get("anyOf") or schema.get("oneOf")
        if isinstance(options, list):
            kept["anyOf"] = [self.node(one, depth + 1) for one in options]
        for part in schema.get("allOf") or ():
            kept |= self.node(part, depth + 1)
        if isinstance(properties := schema.get("properties"), Mapping):
            kept["properties"] = {name: self.node(one, depth + 1) for name, one in properties.items()}
        if "required" in schema:
            kept["required"] = schema["required"]
        if "items" in schema:
            kept["items"] = self.node(schema["items"], depth + 1)

    def described(self, schema: Mapping[str, JSON]) -> str:
        said = schema.get("description") or schema.get("title") or ""
        hints = [f"{name}: {orjson.dumps(schema[name]).decode()}" for name in HINTS if name in schema]
        return " ".join([str(said), *([f"({', '.join(hints)})"] if hints else [])]).strip()

    def target(self, ref: JSON) -> Mapping[str, JSON]:
        found: JSON = self.root
        if not isinstance(ref, str) or not ref.startswith("#"):
            raise self.lost(ref)
        for step in ref[1:].split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or step not in found:
                raise self.lost(ref)
            found = found[step]
        if not isinstance(found, Mapping):
            raise self.lost(ref)
        return found

    def lost(self, ref: JSON) -> BadCall:
        message = f"Invalid '{self.at}': the reference {str(ref)[:80]!r} leads to nothing in this schema."
        return BadCall(message, param=self.at, code="invalid_schema")
