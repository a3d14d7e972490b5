"""What the simulator makes of a schema obeys it."""

from typing import Any

import jsonschema_rs
import pytest

from proxy.upstreams.demo.refusals import Refused
from proxy.upstreams.demo.schema import instance

TREE: dict[str, Any] = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"name": {"type": "string"}, **{key: {"$ref": "#/$defs/node"} for key in "abcdef"}},
            "required": ["name"],
        }
    },
    "$ref": "#/$defs/node",
}
CHAIN: dict[str, Any] = {
    "$defs": {
        "item": {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#/$defs/item"}, {"type": "null"}]}},
            "required": ["next"],
        }
    },
    "$ref": "#/$defs/item",
}
SCHEMAS: list[dict[str, Any]] = [
    {},
    {"type": "string", "minLength": 30},
    {"type": "string", "maxLength": 3},
    *({"type": "string", "format": kind} for kind in ("date", "date-time", "email", "uuid", "ipv4", "uri", "time")),
    *({"type": "string", "pattern": it} for it in (r"^\d{4}$", r"^[A-Z]{3}$", r"^\d{4}-\d{2}-\d{2}$", "^[a-z]+$")),
    {"type": "integer", "minimum": 5, "maximum": 7},
    {"type": "integer", "exclusiveMinimum": 5, "multipleOf": 4},
    {"type": "integer", "maximum": -3},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5},
    {"type": "number", "minimum": 2.5},
    {"type": ["string", "null"]},
    {"type": "boolean"},
    {"type": "null"},
    {"enum": ["red", "green"]},
    {"type": "integer", "enum": ["one", 2]},
    {"const": {"a": [1]}},
    {"anyOf": [{"type": "null"}, {"type": "integer"}]},
    {"oneOf": [{"type": "string"}, {"type": "integer"}]},
    {"allOf": [{"properties": {"a": {"type": "integer"}}}, {"required": ["a", "b"]}], "type": "object"},
    {"type": "array", "items": {"type": "integer"}, "minItems": 3, "uniqueItems": True},
    {"type": "array", "items": {"type": "string"}, "maxItems": 0},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False},
    {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 2},
    {
        "type": "object",
        "properties": {
            "person": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 18}},
                "required": ["name", "age"],
                "additionalProperties": False,
            },
            "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 2},
        },
        "required": ["person", "tags"],
    },
    TREE,
    CHAIN,
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: str(schema)[:50])
def test_an_instance_obeys_its_schema_and_is_always_the_same(schema: dict[str, Any]) -> None:
    made = instance(schema)
    jsonschema_rs.validator_for(schema, validate_formats=True).validate(made)
    assert instance(schema) == made


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/missing"},
        {"$ref": "https://example.com/schema"},
        {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"type": "integer", "minimum": "low"},
        {"type": "object", "properties": [1]},
        {"type": "string", "pattern": "("},
    ],
)
def test_a_schema_that_cannot_be_read_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="Unable to generate parser"):
        instance(schema)


def test_an_instance_is_bounded_whatever_the_schema_asks() -> None:
    wide: dict[str, Any] = {"type": "integer"}
    for _ in range(5):
        wide = {"type": "array", "items": wide, "minItems": 10_000}
    assert len(str(instance(wide))) < 1_000_000
