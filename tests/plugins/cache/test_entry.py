"""Entries survive packing and unpacking, and invalid data is not taken for an entry."""

from __future__ import annotations

import zlib
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.cache.entry import PLAIN, SMALL, Entry
from proxy.types import Finish, Said, Searched, Sources, Text, Thinking, ToolCalled, Usage

WORDS, CHOICES = st.text(max_size=10), st.integers(0, 8)
COUNTS = st.none() | st.integers(0, 2**53)
ANY = st.dictionaries(
    WORDS, st.recursive(st.none() | st.booleans() | CHOICES | WORDS, st.lists, max_leaves=3), max_size=2
)
SOME = st.lists(ANY, max_size=2).map(tuple)
LOGPROBS = st.lists(
    st.fixed_dictionaries({"token": WORDS, "logprob": st.floats(-1e6, 0), "bytes": st.lists(st.integers(0, 255))}),
    max_size=2,
).map(tuple)
EVENTS = st.lists(
    st.builds(Text, WORDS, CHOICES, LOGPROBS)
    | st.builds(Thinking, WORDS, CHOICES)
    | st.builds(ToolCalled, WORDS, WORDS, WORDS, CHOICES)
    | st.builds(Usage, COUNTS, COUNTS, COUNTS, *[st.integers(0, 2**63)] * 3, COUNTS)
    | st.builds(Searched, st.lists(WORDS, max_size=2).map(tuple), st.none() | SOME, CHOICES)
    | st.builds(Sources, SOME, SOME, CHOICES),
    max_size=6,
)


@settings(max_examples=100, deadline=None)
@given(events=EVENTS, long=st.booleans(), seconds=st.floats(0, 1e6))
def test_any_answer_survives_packing_and_unpacking(events: list[Said], long: bool, seconds: float) -> None:
    said = [*events, Text("word " * 2000 * long), Finish("stop")]
    entry = Entry(said, {"model": "demo:latest", "digest": "ab"}, seconds)
    assert Entry.unpack(entry.pack()) == entry


def test_a_logprob_can_be_any_mapping() -> None:
    kept = Entry([Text("a", 0, (MappingProxyType({"token": "a"}),)), Finish("stop")], {}, 1.0)
    assert Entry.unpack(kept.pack()) == Entry([Text("a", 0, ({"token": "a"},)), Finish("stop")], {}, 1.0)


GOOD = b'[[["Text","a",0,[]],["Finish","stop",0]],{"model":"demo"},1.5]'


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        GOOD,
        PLAIN,
        PLAIN + b"{",
        PLAIN + b"5",
        PLAIN + b"null",
        PLAIN + GOOD + b"]",
        PLAIN + b"[" * 100_000,
        PLAIN + GOOD.replace(b'"a"', b"5"),
        PLAIN + GOOD.replace(b'"a"', b'"\xff"'),
        PLAIN + GOOD.replace(b"[]", b"5"),
        PLAIN + GOOD.replace(b"[]", b"[" * 100_000),
        PLAIN + GOOD.replace(b'"Text"', b'"Reply"'),
        PLAIN + GOOD.replace(b'"Text"', b'"Vectors"'),
        PLAIN + GOOD.replace(b'"stop"', b'"error"'),
        PLAIN + GOOD.replace(b',["Finish","stop",0]', b""),
        PLAIN + GOOD.replace(b"1.5", b'"1.5"'),
        PLAIN + GOOD.replace(b'"demo"', b"5"),
        PLAIN + GOOD.replace(b'"model"', b'"cache"'),
        SMALL,
        SMALL + GOOD,
        SMALL + zlib.compress(GOOD)[:-5],
    ],
)
def test_invalid_data_is_a_miss(packed: bytes) -> None:
    assert Entry.unpack(PLAIN + GOOD) is not None and Entry.unpack(SMALL + zlib.compress(GOOD)) is not None
    assert Entry.unpack(packed) is None
