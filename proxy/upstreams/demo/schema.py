"""Generates a small value that matches a JSON schema, always the same one."""

import re
from typing import Any

from .refusals import Refused, nested
from .scalars import distinct, fitting_enum, number, text_of

Schema = dict[str, Any]
DEEP = 8
"""Depth from which on optional parts are omitted, so that recursive schemas end."""
DEEPEST = 32
BUDGET = 4_000
"""Maximum number of values in one instance; optional parts are omitted after half of them."""
BAD = "Unable to generate parser for this template. Automatic parser generation failed: "


def instance(schema: Schema) -> Any:
    """A value that matches the schema. Raises Refused (400) if the schema is invalid."""
    try:
        return Maker(schema).value(schema)
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, re.error) as error:
        raise bad(str(error)) from error


def bad(reason: str) -> Refused:
    return nested(400, BAD + reason)


class Maker:
    """Generates one instance; references are resolved in `root`."""

    def __init__(self, root: Schema) -> None:
        self.root = root
        self.left = BUDGET

    def value(self, schema: Any, hint: str = "simulated", depth: int = 0) -> Any:
        """A value for one part of the schema; `hint` is used for strings that may be anything."""
        self.left -= 1
        if depth > DEEPEST or self.left < 0:
            return None
        if not isinstance(schema, dict):
            return hint
        schema = self.resolved(schema)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return fitting_enum(schema["enum"], schema.get("type"))
        for choice in ("anyOf", "oneOf"):
            if schema.get(choice):
                return self.value(self.chosen(schema, choice, depth), hint, depth + 1)
        return self.typed(schema, hint, depth)

    def generous(self, depth: int) -> bool:
        """Whether optional parts are generated at this depth."""
        return depth < DEEP and self.left > BUDGET // 2

    def resolved(self, schema: Schema) -> Schema:
        """The schema with its $ref followed and its allOf merged in."""
        for _ in range(DEEPEST):
            if "$ref" in schema:
                schema = merged(self.target(str(schema["$ref"])), without(schema, "$ref"))
            elif schema.get("allOf"):
                parts, schema = schema["allOf"], without(schema, "allOf")
                for part in parts:
                    schema = merged(schema, self.resolved(part))
            else:
                return schema
        raise bad("references lead in a circle")

    def target(self, ref: str) -> Schema:
        found: Any = self.root
        for step in ref.strip("#/").split("/") if ref.strip("#/") else ():
            key = step.replace("~1", "/").replace("~0", "~")
            found = found.get(key) if isinstance(found, dict) else None
        if not ref.startswith("#") or not isinstance(found, dict):
            raise bad(f"unresolved reference {ref}")
        return found

    def chosen(self, schema: Schema, choice: str, depth: int) -> Schema:
        """The first alternative that is not null, merged with the schema around it; deep down, null is preferred."""
        around = without(schema, choice)
        options = [merged(around, self.resolved(item)) for item in schema[choice]]
        null = [item for item in options if item.get("type") == "null"]
        rest = [item for item in options if item not in null]
        preferred = rest + null if self.generous(depth) else null + rest
        return preferred[0]

    def typed(self, schema: Schema, hint: str, depth: int) -> Any:
        match self.kind(schema, depth):
            case "object":
                return self.object(schema, depth)
            case "array":
                return self.array(schema, hint, depth)
            case "integer" | "number" as kind:
                return number(schema, kind)
            case "boolean":
                return True
            case "null":
                return None
        return text_of(schema, hint)

    def kind(self, schema: Schema, depth: int) -> str:
        kind = schema.get("type")
        if isinstance(kind, list):
            if "null" in kind and not self.generous(depth):
                return "null"
            kind = next((item for item in kind if item != "null"), "null")
        if isinstance(kind, str) and kind:
            return kind
        signs = {"properties": "object", "required": "object", "items": "array", "prefixItems": "array"}
        signs |= {"minimum": "number", "maximum": "number"}
        return next((named for sign, named in signs.items() if sign in schema), "string")

    def object(self, schema: Schema, depth: int) -> Schema:
        properties, required = schema.get("properties") or {}, schema.get("required") or []
        names = [name for name in properties if name in required or self.generous(depth)]
        names += [name for name in required if name not in properties]
        made = {name: self.value(properties.get(name, {}), name, depth + 1) for name in names}
        more = schema.get("additionalProperties")
        for place in range(len(made), min(schema.get("minProperties", 0), BUDGET)):
            made[f"key_{place}"] = self.value(more or {}, f"key_{place}", depth + 1)
        return made

    def array(self, schema: Schema, hint: str, depth: int) -> list[Any]:
        first, items = schema.get("prefixItems") or [], schema.get("items", {})
        wanted = max(schema.get("minItems", 0), len(first), int(self.generous(depth) and items is not False))
        length = min(wanted, schema.get("maxItems", BUDGET), BUDGET)
        each = [first[place] if place < len(first) else items for place in range(length)]
        made = [self.value(item, hint, depth + 1) for item in each]
        return list(distinct(made, items)) if schema.get("uniqueItems") else made


def without(schema: Schema, key: str) -> Schema:
    return {name: value for name, value in schema.items() if name != key}


def merged(one: Schema, other: Schema) -> Schema:
    """Both schemas combined; the second one wins where they differ."""
    both = {**one, **other}
    if properties := {**one.get("properties", {}), **other.get("properties", {})}:
        both["properties"] = properties
    if required := [*one.get("required", []), *other.get("required", [])]:
        both["required"] = required
    return both
