"""Tool schemas keep their meaning although Ollama reads only a part of JSON Schema."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import BadCall
from proxy.types import JSON
from proxy.wire import read
from proxy.wire.ollama_schema import parameters

from .asks import nested, schemas_in

AT = "tools[0].function.parameters"
OLLAMAS = {"type", "anyOf", "items", "description", "enum", "properties", "required"}


def property_sent(one: JSON, **more: JSON) -> JSON:
    """A property's schema as it is sent; `more` are keywords at the root."""
    return parameters({"type": "object", "properties": {"x": one}, **more}, AT)["properties"]["x"]


def refused(schema: JSON) -> BadCall:
    with pytest.raises(BadCall) as caught:
        parameters(schema, AT)
    assert caught.value.param == AT and AT in str(caught.value)
    return caught.value


def outcome(schema: JSON) -> JSON | BadCall:
    """The request to Ollama for a tool with this schema, or the error."""
    try:
        read.not_deep(schema, AT, 64)
        return parameters(schema, AT)
    except BadCall as error:
        return error


@pytest.mark.parametrize("schema", [{}, {"type": "object"}, {"type": ["object", "null"]}, {"properties": None}])
def test_properties_are_always_present(schema: JSON) -> None:
    assert parameters(schema, AT) == {"type": "object", "properties": {}}


def test_keywords_that_ollama_keeps_stay_unchanged() -> None:
    kept = {
        "type": "object",
        "properties": {
            "city": {"type": ["string", "null"], "description": "where", "enum": ["a", None]},
            "days": {"type": "array", "items": {"type": "integer"}},
            "at": {"anyOf": [{"type": "object", "properties": {"a": {}}, "required": ["a"]}, {"type": "null"}]},
            "pair": {"type": "array", "items": [{"type": "integer"}, {"type": "string"}]},
        },
        "required": ["city"],
    }
    assert parameters(kept, AT) == kept


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("default", None),
        ("default", {"$ref": "data"}),
        ("format", "date"),
        ("pattern", "^a$"),
        ("minimum", 0),
        ("exclusiveMaximum", 5.5),
        ("multipleOf", 2),
        ("maxLength", 3),
        ("minItems", 1),
        ("uniqueItems", True),
        ("additionalProperties", False),
        ("additionalProperties", {"type": "integer"}),
        ("patternProperties", {"^a": {"type": "integer"}}),
        ("minProperties", 1),
        ("propertyNames", {"maxLength": 3}),
        ("prefixItems", [{"type": "integer"}]),
        ("not", {"const": 3}),
        ("if", {"required": ["a"]}),
        ("dependentRequired", {"a": ["b"]}),
        ("examples", ["é"]),
        ("x-unit", "km"),
    ],
)
def test_keywords_that_ollama_drops_go_into_the_description(keyword: str, value: JSON) -> None:
    said = f"{keyword}: {orjson.dumps(value).decode()}"
    assert property_sent({"type": "string", "description": "A thing.", keyword: value}) == {
        "type": "string",
        "description": f"A thing. ({said})",
    }
    assert parameters({keyword: value}, AT)["description"] == f"({said})"


@pytest.mark.parametrize("keyword", ["$schema", "$id", "$comment"])
def test_keywords_without_meaning_for_values_are_dropped(keyword: str) -> None:
    assert property_sent({"type": "string", keyword: "x"}) == {"type": "string"}


def test_a_title_replaces_a_missing_description() -> None:
    assert property_sent({"title": "City"}) == {"description": "City"}
    assert property_sent({"title": "City", "description": "where"}) == {"description": "where"}
    assert "description" not in parameters({"title": "Weather"}, AT)


def test_const_becomes_an_enum() -> None:
    assert property_sent({"const": None}) == {"enum": [None]}


def test_one_of_becomes_any_of() -> None:
    either = [{"type": "string"}, {"type": "null"}]
    assert property_sent({"oneOf": either}) == property_sent({"anyOf": either}) == {"anyOf": either}
    both = property_sent({"anyOf": either, "oneOf": [{"type": "integer"}]})
    assert both == {"anyOf": either, "description": '(anyOf: [{"type":"integer"}])'}


def test_all_of_is_merged() -> None:
    base = {"properties": {"a": {"type": "string"}}, "required": ["a"], "description": "base"}
    more = {"properties": {"b": {"type": "integer"}, "a": {"maxLength": 3}}, "required": ["b", "a"]}
    assert property_sent({"type": "object", "allOf": [base, more], "properties": {"c": True}}) == {
        "type": "object",
        "properties": {
            "c": {},
            "a": {"type": "string", "description": "(maxLength: 3)"},
            "b": {"type": "integer"},
        },
        "required": ["a", "b"],
        "description": "base",
    }


def test_schemas_that_cannot_be_merged_go_into_the_description() -> None:
    merged = property_sent({"type": "number", "allOf": [{"type": "integer"}, {"description": "count"}]})
    assert merged == {"type": "number", "description": '(type: "integer") count'}


def test_any_of_at_the_root_goes_into_the_description() -> None:
    made = parameters({"anyOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {}, "b": {}}}, AT)
    assert made["description"] == '(anyOf: [{"required":["a"]},{"required":["b"]}])'
    assert "anyOf" not in made


@pytest.mark.parametrize(
    ("ref", "root"),
    [
        ("#/$defs/City", {"$defs": {"City": {"type": "string"}}}),
        ("#/definitions/City", {"definitions": {"City": {"type": "string"}}}),
        ("#/properties/y", {"properties": {"x": {"$ref": "#/properties/y"}, "y": {"type": "string"}}}),
        ("#/$defs/a~1b~0c", {"$defs": {"a/b~c": {"type": "string"}}}),
        ("#/$defs/An%20Address", {"$defs": {"An Address": {"type": "string"}}}),
        ("#/$defs/any/anyOf/1", {"$defs": {"any": {"anyOf": [{"type": "null"}, {"type": "string"}]}}}),
        ("#/$defs/One", {"$defs": {"One": {"$ref": "#/$defs/Two"}, "Two": {"type": "string"}}}),
    ],
)
def test_references_are_inlined(ref: str, root: JSON) -> None:
    assert property_sent({"$ref": ref}, **root) == {"type": "string"}


def test_the_root_can_be_a_reference() -> None:
    made = parameters({"$ref": "#/$defs/A", "$defs": {"A": {"properties": {"x": {"type": "string"}}}}}, AT)
    assert made == {"type": "object", "properties": {"x": {"type": "string"}}}


def test_keywords_beside_a_reference_are_kept() -> None:
    defs = {"$defs": {"A": {"type": "object", "description": "an A", "properties": {"a": {}}}}}
    assert property_sent({"$ref": "#/$defs/A", "description": "mine", "default": 1}, **defs) == {
        "type": "object",
        "description": "mine (default: 1)",
        "properties": {"a": {}},
    }
    both = property_sent({"$ref": "#/$defs/A", "properties": {"b": {}}}, **defs)
    assert both["properties"] == {"b": {}, "a": {}}


def test_references_in_descriptions_are_inlined_too() -> None:
    made = property_sent({"additionalProperties": {"$ref": "#/$defs/A"}}, **{"$defs": {"A": {"type": "integer"}}})
    assert made == {"description": '(additionalProperties: {"type":"integer"})'}


def test_a_property_can_have_any_name() -> None:
    names: JSON = {"$ref": {"type": "string"}, "allOf": {"type": "string"}, "type": {"type": "string"}}
    assert parameters({"properties": names}, AT)["properties"] == names


def test_a_property_that_allows_no_value_says_so() -> None:
    assert property_sent(False) == {"description": "(never given)"} and property_sent(True) == {}


@pytest.mark.parametrize(
    "ref",
    [
        "#/$defs/Missing",
        "https://example.test/a.json",
        "other.json#/a",
        "#anchor",
        "",
        "#/properties/x/type",
        "#/required/1",
        5,
    ],
)
def test_a_broken_reference_is_refused(ref: JSON) -> None:
    error = refused({"properties": {"x": {"type": "string"}, "y": {"$ref": ref}}, "required": ["x"]})
    assert error.code == "invalid_schema" and "does not exist" in str(error)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"child": {"$ref": "#"}}},
        {"$ref": "#"},
        {"$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}, "properties": {"x": {"$ref": "#/$defs/A"}}},
        {"$defs": {"A": {"additionalProperties": {"$ref": "#/$defs/A"}}}, "$ref": "#/$defs/A"},
        {"$defs": {"A": {"allOf": [{"$ref": "#/$defs/A"}]}}, "$ref": "#/$defs/A"},
    ],
)
def test_recursion_is_a_clear_error(schema: JSON) -> None:
    assert "too large once its references are written out" in str(refused(schema))


def test_inlining_is_bounded_in_number() -> None:
    defs: JSON = {"a0": {"type": "string"}}
    for level in range(1, 20):
        defs[f"a{level}"] = {"properties": {name: {"$ref": f"#/$defs/a{level - 1}"} for name in "xy"}}
    assert "too large" in str(refused({"$defs": defs, "$ref": "#/$defs/a19"}))


@pytest.mark.parametrize("long", [{"description": "x" * 100_000}, {"enum": ["x" * 100_000]}])
def test_inlining_is_bounded_in_bytes(long: JSON) -> None:
    properties = {f"p{index}": {"$ref": "#/$defs/A"} for index in range(100)}
    assert "too large" in str(refused({"$defs": {"A": long}, "properties": properties}))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"type": ["array", "null"]},
        {"properties": []},
        {"properties": {"x": 5}},
        {"properties": {"x": "string"}},
        {"properties": {"x": {"properties": "none"}}},
        {"properties": {"x": {"items": 5}}},
        {"properties": {"x": {"enum": "a"}}},
        {"properties": {"x": {"anyOf": {}}}},
        {"properties": {"x": {"oneOf": True}}},
        {"properties": {"x": {"allOf": 5}}},
        {"allOf": [5]},
        {"required": "x"},
        {"required": [5]},
    ],
)
def test_an_invalid_schema_is_refused(schema: JSON) -> None:
    assert refused(schema).code == "invalid_schema"


# --- whatever comes ----------------------------------------------------------------------------------

REFS = st.sampled_from(["#", "#/$defs/a", "#/$defs/b", "#/properties/a", "#a", "x", 5, "#/$defs"])
NAMES = st.sampled_from(["a", "b", "$ref", ""])
LOOSE = st.recursive(
    st.none() | st.booleans() | st.sampled_from(["object", "string", "", 2**64 - 1, -1.5, "#/$defs/a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


def schema_around(inner: st.SearchStrategy[JSON]) -> st.SearchStrategy[JSON]:
    """Objects with JSON Schema's keywords, mostly with valid values."""
    listed, by_name = st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)
    return st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["object", "string", ["object", "null"], None, 5]),
            "properties": by_name | LOOSE,
            "items": inner | listed | LOOSE,
            "anyOf": listed | LOOSE,
            "oneOf": listed,
            "allOf": listed | LOOSE,
            "required": st.lists(NAMES, max_size=2) | LOOSE,
            "$ref": REFS,
            "$defs": by_name | LOOSE,
            "enum": st.lists(LOOSE, max_size=2) | LOOSE,
            "const": LOOSE,
            "description": st.text(max_size=3) | LOOSE,
            "additionalProperties": inner,
            "not": inner,
            "default": LOOSE,
        },
    )


SCHEMAS = st.recursive(st.booleans() | st.fixed_dictionaries({"type": st.just("string")}), schema_around, max_leaves=8)


@settings(max_examples=100, deadline=None)
@given(schema=schema_around(SCHEMAS))
def test_any_schema_is_refused_or_sent_without_references(schema: JSON) -> None:
    made = outcome(schema)
    if isinstance(made, BadCall):
        assert str(made) and made.param == AT
        return
    assert made["type"] == "object" and isinstance(made["properties"], dict)
    assert all(set(one) <= OLLAMAS for one in schemas_in(made))
    assert orjson.loads(orjson.dumps(made)) == made


@pytest.mark.parametrize("keyword", ["properties", "items", "anyOf", "not", "default", "enum", "x-deep"])
def test_the_deepest_accepted_json_can_be_serialised(keyword: str) -> None:
    for levels in (30, 60, 61):
        schema = {"properties": {"x": {keyword: [nested(levels)] if keyword in ("anyOf", "enum") else nested(levels)}}}
        made = outcome(schema)
        assert isinstance(made, BadCall) or orjson.dumps(made)
