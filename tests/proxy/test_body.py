"""Bodies that would block the server are refused before they are parsed."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import Requests
from proxy.edge.body import CONTAINERS, VALUES, parsed, structure
from proxy.errors import BadCall

BOUNDS = Requests()
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(st.sampled_from('a,[]{}"\\\n:'), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('"\\a,{', max_size=4), inner, max_size=4),
    max_leaves=20,
)


def many(count: int, one: bytes, before: bytes = b"[", after: bytes = b"]") -> bytes:
    """This many copies of a value, in an array unless other delimiters are given."""
    return before + b",".join([one] * count) + after


@pytest.mark.parametrize(
    "body",
    [
        many(CONTAINERS + 1, b"{}"),
        many(CONTAINERS + 1, b"[]"),
        many(CONTAINERS, b"[]", b'{"model":"m","messages":[', b"]}"),
        many(CONTAINERS // 2 + 1, b'{"a":[]}'),
        many(VALUES + 2, b"0"),
        many(VALUES + 2, b'""'),
        b"{" + b",".join(b'"%d":0' % number for number in range(VALUES + 2)) + b"}",
        many(CONTAINERS + 1, b'{"\\\\":"\\""}'),
    ],
    ids=["objects", "arrays", "messages", "nested", "numbers", "texts", "names", "escapes"],
)
def test_a_body_of_too_many_values_is_refused(body: bytes) -> None:
    orjson.loads(body)
    with pytest.raises(BadCall) as refused:
        parsed(body, BOUNDS)
    assert refused.value.code == "too_many_values" and str(CONTAINERS) in str(refused.value)


@pytest.mark.parametrize(
    "value",
    [
        {"content": "{[,]}" * CONTAINERS},
        {"content": '{"a": ["b\\n", "\\\\"]}, ' * CONTAINERS},
        {"content": "," * (VALUES + 9), "more": ['\\"[{,' * CONTAINERS, "\\"]},
        [0] * VALUES,
        [{}] * (CONTAINERS - 1),
    ],
    ids=["braces", "JSON in a text", "escapes", "numbers", "objects"],
)
def test_a_body_within_the_limits_is_read_even_if_it_contains_many_commas(value: Any) -> None:
    assert parsed(orjson.dumps(value), BOUNDS) == value


@given(VALUE)
def test_the_structure_of_a_body_is_counted_without_parsing(value: Any) -> None:
    texts = containers = commas = 0
    left = [value]
    while left:
        one = left.pop()
        texts += isinstance(one, str) + (len(one) if isinstance(one, dict) else 0)
        if isinstance(one, list | dict):
            containers, commas = containers + 1, commas + max(0, len(one) - 1)
            left += one.values() if isinstance(one, dict) else one
    assert structure(orjson.dumps(value)) == (texts, containers, commas)
