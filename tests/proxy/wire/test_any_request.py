"""Any JSON that a client sends is either translated for Ollama or refused with an error naming a field."""

from __future__ import annotations

import base64
from copy import deepcopy
from typing import Final

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import BadCall
from proxy.models import ModelInfo
from proxy.types import JSON
from proxy.wire import ollama_chat, openai_chat, openai_embeddings
from proxy.wire.ollama_chat import Pins
from proxy.wire.openai_chat import read_chat
from proxy.wire.openai_embeddings import read_embeddings
from proxy.wire.openai_fields import OLLAMA_NAMES

from .asks import HI, LIMITS, WEATHER, named, nested, picture, schemas_in, tool, words

PINS: Final = Pins({"num_ctx": 8192}, keep_alive=300)
PLAIN: Final = ModelInfo("m", capabilities=frozenset({"completion"}))
CALL: Final = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Ä"}'}}
TREE: Final = {"$defs": {"N": {"type": "object", "properties": {"n": {"type": "integer"}}}}, "$ref": "#/$defs/N"}
BODIES: Final[list[JSON]] = [
    {
        "model": "m",
        "messages": [
            {"role": "developer", "content": [words("be kind")]},
            {"role": "user", "content": [words("see"), picture(detail="low")], "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
            {"role": "tool", "tool_call_id": "c1", "content": "warm"},
        ],
        "tools": [tool(strict=True), tool("tree", parameters=TREE, description="d")],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named("tree")]}},
        "parallel_tool_calls": False,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "seed": 3,
    },
    {
        "model": "m",
        "messages": HI,
        "tools": [tool(), tool("tree", parameters=TREE)],
        "tool_choice": "required",
        "max_completion_tokens": 5,
        "options": {"top_k": 3, "num_ctx": 5, "stop": "x"},
        "metadata": {"a": "b"},
    },
    {
        "model": "m",
        "messages": [*HI, {"role": "assistant", "content": "", "refusal": "no", "function_call": None}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "w", "strict": True, "schema": WEATHER}},
        "logprobs": True,
        "top_logprobs": 2,
        "n": 2,
        "stop": ["a", "b"],
        "top_p": 1,
        "reasoning_effort": "high",
        "user": "u",
        "store": False,
        "logit_bias": {},
        "modalities": ["text"],
        "prompt_cache_options": {"a": [1]},
    },
    {
        "model": "m",
        "messages": [
            *HI,
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}},
            {"role": "function", "name": "f", "content": "1"},
        ],
        "functions": [{"name": "f", "parameters": WEATHER}],
        "function_call": {"name": "f"},
    },
    {"model": "m", "messages": HI, "keep_alive": 0, "mine": {"a": 1}},
]
THEIRS: Final = frozenset({"mine"})
NUMBERS: Final = st.sampled_from([0, -1, 1.5, 2**63, 2**64 - 1, -(2**63), 1e308, 5e-324])
STRINGS: Final = st.sampled_from(["", " ", "\x00", "{}", "[1]", "none", "required", "function", "ä🙂", "a.png"])
URLS: Final = st.sampled_from(["data:image/png;base64,", "data:;base64,iVBORw0KGgo=", "https://a.test/a.png"])
EMPTY: Final[st.SearchStrategy[JSON]] = st.sampled_from([[], {}, [[]], [{}], {"": None}]).map(deepcopy)
ODD: Final = st.none() | st.booleans() | NUMBERS | STRINGS | URLS | EMPTY
KEYS: Final = st.sampled_from(["type", "name", "function", "$ref", "text", "properties", "$defs", "anyOf"])
# As deep as orjson reads.
DEEP: Final = st.integers(1, 900).map(nested)
ANY: Final = (
    ODD
    | DEEP
    | st.recursive(
        ODD | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
        max_leaves=8,
    )
)
FIELDS: Final = st.sampled_from(sorted({*openai_chat.FIELDS, "mine", "unknown"}))
PLACES: Final = st.lists(st.integers(0, 50), min_size=1, max_size=8)


def mutated(body: JSON, place: list[int], value: JSON) -> None:
    """Put the value somewhere into the body; the numbers choose the path."""
    for step in place[:-1]:
        inner = list(body.values()) if isinstance(body, dict) else body
        inner = [one for one in inner if isinstance(one, dict | list) and one]
        if not inner:
            break
        body = inner[step % len(inner)]
    keys = list(body) if isinstance(body, dict) else list(range(len(body)))
    body[keys[place[-1] % len(keys)]] = value


@st.composite
def requests(draw: st.DrawFn) -> JSON:
    body = deepcopy(draw(st.sampled_from(BODIES)))
    for _ in range(draw(st.integers(0, 2))):
        body[draw(FIELDS)] = draw(ANY)
    for _ in range(draw(st.integers(0, 2))):
        mutated(body, draw(PLACES), draw(ANY))
    return body


def outcome(body: JSON, info: ModelInfo | None) -> JSON | BadCall:
    """The request to Ollama, or the error."""
    try:
        asked = read_chat(body, LIMITS, THEIRS)
        orjson.dumps([list(asked.notes.items()), asked.model])
        return orjson.loads(orjson.dumps(ollama_chat.plan("m", asked.chat(), asked.stream, PINS, info).body))
    except BadCall as error:
        return error


def check_names_a_field(error: BadCall, *known: str) -> bool:
    return str(error) != "" and (error.param or "").split(".")[0].split("[")[0] in known


def check_valid_for_ollama(body: JSON) -> bool:
    for message in body["messages"]:
        assert isinstance(message["content"], str)
        assert all(base64.b64decode(image, validate=True) or not image for image in message.get("images", []))
        assert all(isinstance(call["function"]["arguments"], dict) for call in message.get("tool_calls", []))
    for one in body.get("tools", []):
        assert isinstance(one["function"]["parameters"]["properties"], dict)
        assert not any("$ref" in schema for schema in schemas_in(one["function"]["parameters"]))
    return set(body["options"]) <= {*OLLAMA_NAMES, "num_ctx"} and body["options"]["num_ctx"] == PINS.options["num_ctx"]


@pytest.mark.parametrize("body", BODIES)
def test_the_original_requests_are_valid(body: JSON) -> None:
    made = outcome(body, None)
    assert not isinstance(made, BadCall) and check_valid_for_ollama(made)


@settings(max_examples=200, deadline=None)
@given(body=requests(), info=st.sampled_from([None, PLAIN]))
def test_any_request_is_sent_to_ollama_or_refused_naming_a_field(body: JSON, info: ModelInfo | None) -> None:
    made = outcome(body, info)
    if isinstance(made, BadCall):
        assert check_names_a_field(made, *openai_chat.FIELDS, *THEIRS)
    else:
        assert check_valid_for_ollama(made)


@settings(max_examples=100, deadline=None)
@given(body=ANY | st.dictionaries(FIELDS, ANY, max_size=4))
def test_any_json_is_read_or_refused(body: JSON) -> None:
    made = outcome(body, None)
    assert not isinstance(made, BadCall) or str(made)


@settings(max_examples=100, deadline=None)
@given(changes=st.dictionaries(st.sampled_from([*openai_embeddings.FIELDS, "mine"]), ANY, max_size=2))
def test_any_request_for_embeddings_is_read_or_refused_naming_a_field(changes: JSON) -> None:
    try:
        asked = read_embeddings({"model": "e", "input": ["hi"], **changes}, 4, THEIRS)
        body = ollama_chat.embed_body("e", asked.embed(asked.texts).inputs, asked.dimensions, PINS)
        read = bool(orjson.dumps(body))
    except BadCall as error:
        read = check_names_a_field(error, *openai_embeddings.FIELDS, *THEIRS)
    assert read


@pytest.mark.parametrize("fields", [("tools",), ("functions",), ("tools", "functions")])
def test_deep_unknown_fields_do_no_harm(fields: tuple[str, ...]) -> None:
    """Unknown parts of known fields are skipped, however deep they are."""
    given = {
        name: [{"type": "function", "name": "f", "function": {"name": "f"}, "odd": nested(1_000)}] for name in fields
    }
    made = outcome({"model": "m", "messages": HI, **given}, None)
    assert isinstance(made, BadCall) == (len(fields) > 1)
