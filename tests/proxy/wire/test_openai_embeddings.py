"""OpenAI's embeddings, as requests and as answers."""

from __future__ import annotations

import base64
import typing

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray
from openai.types import CreateEmbeddingResponse, EmbeddingCreateParams

from proxy.errors import BadCall
from proxy.streams import Answer
from proxy.types import JSON, Embed, Usage, Vectors
from proxy.wire.openai_embeddings import FIELDS, MOST_TOKENS, AskedEmbed, read_embeddings, write_embeddings

from .asks import nested, unknown_fields

ROWS = np.array([[0.6, 0.8], [1, 0], [0.1, 0.3]], np.float32)


def asked(theirs: tuple[str, ...] = (), **body: JSON) -> AskedEmbed:
    return read_embeddings({"model": "e", "input": "hi", **body}, 3, theirs)


def written(vectors: Vectors | None, as_base64: bool = False) -> JSON:
    return orjson.loads(write_embeddings("e", Answer(usage=Usage(7, 0), vectors=vectors), as_base64))


def test_every_field_that_the_openai_sdk_can_send_is_a_row() -> None:
    assert set(typing.get_type_hints(EmbeddingCreateParams)) <= set(FIELDS)


@pytest.mark.parametrize(
    ("given", "texts", "tokens"),
    [
        ("hi", ["hi"], []),
        (["a", "b"], ["a", "b"], []),
        ([1, 2, 3, 4], [], [[1, 2, 3, 4]]),
        ([[1], [2, 3]], [], [[1], [2, 3]]),
    ],
)
def test_inputs_are_texts_or_tokens(given: JSON, texts: JSON, tokens: JSON) -> None:
    one = asked(input=given)
    assert (one.texts, one.tokens) == (texts, tokens)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ("", "input"),
        ([], "input"),
        (None, "input"),
        ({}, "input"),
        (5, "input"),
        (["a", ""], "input[1]"),
        (["a", 1], "input[1]"),
        ([None], "input[0]"),
        ([True], "input[0]"),
        ([1, "a"], "input[1]"),
        ([1, -1], "input[1]"),
        ([[1], []], "input[1]"),
        ([[1], "a"], "input[1]"),
        ([[1], [2, "a"]], "input[1][1]"),
        ([[]], "input[0]"),
        (["a"] * 4, "input"),
        ([[1]] * 4, "input"),
        ([1, 2**31], "input[1]"),
        ([1] * (MOST_TOKENS + 1), "input"),
        ([[1] * (MOST_TOKENS // 2)] * 3, "input"),
    ],
)
def test_an_invalid_input_is_refused_naming_its_field(given: JSON, param: str) -> None:
    with pytest.raises(BadCall) as caught:
        asked(input=given)
    assert caught.value.param == param and f"'{param}'" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("model", None),
        ("dimensions", 0),
        ("dimensions", "8"),
        ("encoding_format", "int8"),
        ("user", 5),
    ],
)
def test_an_invalid_value_is_refused_naming_its_field(field: str, value: JSON) -> None:
    with pytest.raises(BadCall) as caught:
        asked(**{field: value})
    assert caught.value.param == field


@pytest.mark.parametrize("body", [None, [], "hi"])
def test_a_body_other_than_an_object_is_refused(body: JSON) -> None:
    with pytest.raises(BadCall, match="must be a JSON object"):
        read_embeddings(body, 3)


def test_the_other_fields() -> None:
    one = asked(theirs=("mine",), dimensions=8, encoding_format="base64", user="u", mine=[1], new=2, odd=None)
    assert one.embed(["hi"]) == Embed(inputs=("hi",), dimensions=8)
    assert (one.base64, one.about, one.extra, one.notes) == (True, {"user": "u"}, {"mine": [1]}, {"new": "ignored"})
    assert not asked(encoding_format="float").base64 and not asked().base64


def test_a_plugins_field_has_a_depth_limit() -> None:
    with pytest.raises(BadCall, match="nested more than 64"):
        asked(theirs=("mine",), mine=nested(65))


def test_floats_match_the_sdks_types() -> None:
    told = written(Vectors(ROWS))
    found = CreateEmbeddingResponse.model_validate(told, strict=True)
    assert not set(unknown_fields(found))
    assert [one.index for one in found.data] == [0, 1, 2]
    assert np.array_equal(np.array([one.embedding for one in found.data], np.float32), ROWS)
    assert told["usage"] == {"prompt_tokens": 7, "total_tokens": 7}


@pytest.mark.parametrize("rows", [ROWS, ROWS[:, ::-1], ROWS.T.copy().T, ROWS.astype(">f4")])
def test_base64_is_little_endian_float32_for_any_memory_layout(rows: NDArray[np.float32]) -> None:
    data = written(Vectors(rows), as_base64=True)["data"]
    found = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in data]
    assert np.array_equal(found, rows)


def test_no_vectors_are_an_empty_list() -> None:
    assert written(None)["data"] == []
