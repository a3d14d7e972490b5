"""No schema makes the validation of an answer take for ever, even with recursive references."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import BadCall
from proxy.types import JSON
from proxy.upstreams.repair import SchemaValidator, validators_of
from proxy.wire.schema_weight import Weight

A, B = {"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}
Links = list[tuple[bool, int]]
"""The references of one schema: the number of each target, preceded by whether it applies to inner values."""


def chain(depth: int) -> JSON:
    value: JSON = {}
    for _ in range(depth):
        value = {"x": value}
    return value


def test_the_order_of_references_does_not_matter() -> None:
    definitions = {"A": {"allOf": [B, B, B, B]}, "B": {"properties": {"x": A}}}
    for schema in ({"$ref": "#/$defs/A", "$defs": definitions}, {"$defs": definitions, "$ref": "#/$defs/A"}):
        weight = Weight(schema, "p")
        assert weight.loops == 4 and weight.allows(chain(5)) and not weight.allows(chain(12))


def test_reuse_of_a_definition_adds_no_weight() -> None:
    definitions = {"A": {"properties": {"x": A}}, "B": {"items": B}}
    weight = Weight({"$defs": definitions, "properties": {"a": A, "b": A, "c": B, "d": B}}, "p")
    assert weight.loops == 1 and weight.allows(chain(500))


def test_many_values_weigh_more_than_one() -> None:
    weight = Weight({"items": {"$ref": "#"}, "properties": {"x": {"$ref": "#"}}}, "p")
    assert weight.allows(chain(12)) and not weight.allows([chain(12)] * 200)


def test_a_long_chain_of_references_is_refused() -> None:
    links = {f"d{number}": {"not": {"$ref": f"#/$defs/d{number + 1}"}} for number in range(3000)}
    with pytest.raises(BadCall, match="too large"):
        Weight({"$ref": "#/$defs/d0", "$defs": links}, "p")


def patterned(count: int, pattern: str = "^[0-9]{{4}}-{}$") -> JSON:
    return {"properties": {f"p{number}": {"pattern": pattern.format(number)} for number in range(count)}}


def test_what_compiling_regular_expressions_takes_is_bounded() -> None:
    """Compiling one cannot be interrupted, and can take half a second."""
    assert Weight(patterned(200), "p").pattern_size(1) == 65536 and Weight({}, "p").pattern_size(1) == 8 * 2**20
    assert Weight(patterned(300, "^a$"), "p").patterns == {"^a$"}
    with pytest.raises(BadCall, match="more than 200 different regular expressions"):
        Weight(patterned(201), "p")
    with pytest.raises(BadCall, match="more than 200"):
        Weight({"patternProperties": {f"^{number}": True for number in range(201)}}, "p")
    with pytest.raises(BadCall, match="it is too large"):
        SchemaValidator(
            {"properties": {str(number): {"pattern": f"^(?!x){number}\\w{{1,20}}$"} for number in range(50)}}, "p"
        )
    SchemaValidator(patterned(200), "p")
    SchemaValidator({"pattern": "^(?!x)\\w{1,64}$"}, "p")


def test_functions_of_a_call_share_a_bound_of_regular_expressions() -> None:
    several = {f"f{number}": patterned(200) for number in range(6)}
    with pytest.raises(BadCall, match="more than 1000 regular expressions") as refused:
        validators_of(several)
    assert (refused.value.param, refused.value.code) == ("tools", "invalid_schema")
    assert set(validators_of({name: several[name] for name in list(several)[:5]})) == {"f0", "f1", "f2", "f3", "f4"}


@st.composite
def schemas(draw: st.DrawFn) -> list[Links]:
    """Schemas that refer to each other; for the value itself only to later ones, to avoid infinite recursion."""
    count = draw(st.integers(1, 5))
    each = [
        st.lists(
            st.tuples(st.just(True), st.integers(0, count - 1))
            | (st.tuples(st.just(False), st.integers(here + 1, count - 1)) if here + 1 < count else st.nothing()),
            max_size=4,
        )
        for here in range(count)
    ]
    return [draw(one) for one in each]


def written(several: list[Links], first: bool) -> dict[str, JSON]:
    definitions = {
        f"d{here}": {"allOf": [{"items": ref(to)} if inside else ref(to) for inside, to in links]}
        for here, links in enumerate(several)
    }
    return {"$ref": "#/$defs/d0", "$defs": definitions} if first else {"$defs": definitions, "$ref": "#/$defs/d0"}


def ref(to: int) -> JSON:
    return {"$ref": f"#/$defs/d{to}"}


@settings(max_examples=300, deadline=None)
@given(several=schemas(), first=st.booleans())
def test_the_estimated_number_of_checks_is_an_upper_bound(several: list[Links], first: bool) -> None:
    try:
        weight = Weight(written(several, first), "p")
    except BadCall:
        return

    @cache
    def looks(here: int, depth: int) -> int:
        """How often schemas are applied to the innermost of `depth` nested lists."""
        inner = (looks(to, depth - inside) for inside, to in several[here] if depth or not inside)
        return (not depth) + sum(inner)

    for depth in range(8):
        assert looks(0, depth) <= weight.nodes * max(1, weight.loops) ** depth
