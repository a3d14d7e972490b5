"""OpenAI's embeddings, requests and answers.  Source: OpenAI's API reference, "Create embeddings"."""

from __future__ import annotations

import base64
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

import orjson

from proxy.errors import BadCall
from proxy.streams import Answer
from proxy.types import JSON, Embed
from proxy.wire import read

MOST_TOKENS: Final = 1_000_000
"""Maximum number of tokens in a request; checking them blocks the event loop."""


@dataclass(slots=True)
class AskedEmbed:
    """A parsed embeddings request.  Its inputs are texts or lists of tokens."""

    model: str
    texts: list[str]
    tokens: list[list[int]]
    dimensions: int | None
    base64: bool
    about: dict[str, JSON] = field(default_factory=dict)
    extra: dict[str, JSON] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def embed(self, texts: list[str]) -> Embed:
        return Embed(inputs=tuple(texts), dimensions=self.dimensions)


FIELDS = {
    "model": "Name or alias of an embedding model.",
    "input": "A string, a list of strings, a list of tokens or a list of such lists (cl100k_base).",
    "encoding_format": "`float` or `base64`, little-endian float32.",
    "dimensions": "Fewer than the model's own; the vector is cut and scaled to unit length again.",
    "user": "For the records.",
}


def read_embeddings(body: JSON, most: int, theirs: Collection[str] = (), max_depth: int = 64) -> AskedEmbed:
    """Parse and check a body.  Raises BadCall, which names the first wrong field."""
    if type(body) is not dict:
        raise BadCall(f"The body must be a JSON object, but is {read.kind_of(body)}.", code="invalid_type")
    model = read.model(read.needed(body, "model", "model"), "model")
    dimensions, encoding = body.get("dimensions"), body.get("encoding_format")
    texts, token_lists = inputs(read.needed(body, "input", "input"), most)
    asked = AskedEmbed(
        model,
        texts,
        token_lists,
        None if dimensions is None else read.whole(dimensions, "dimensions", 1, 1_000_000),
        encoding is not None and read.one_of(encoding, "encoding_format", ("float", "base64")) == "base64",
    )
    for name, value in body.items():
        if name in theirs:
            read.not_deep(value, name, max_depth)
            asked.extra[name] = value
        elif name == "user" and value is not None:
            asked.about["user"] = read.text(value, "user")
        elif name not in FIELDS and value is not None:
            asked.notes[name] = "ignored"
    return asked


def inputs(value: JSON, most: int, at: str = "input") -> tuple[list[str], list[list[int]]]:
    """The texts and the lists of tokens, one of which is empty."""
    if type(value) is str:
        return [read.filled(value, at)], []
    items = read.array(value, at, MOST_TOKENS)
    if not items:
        raise BadCall(f"Invalid '{at}': the array is empty.", param=at, code="empty_array")
    if type(items[0]) is int:
        return [], [tokens(items, at)]
    named = [(one, f"{at}[{index}]") for index, one in enumerate(read.array(items, at, most))]
    if type(items[0]) is list:
        lists = [tokens(read.array(one, name, MOST_TOKENS), name) for one, name in named]
        if sum(map(len, lists)) > MOST_TOKENS:
            message = f"Invalid '{at}': more than {MOST_TOKENS} tokens."
            raise BadCall(message, param=at, code="array_above_max_length")
        return [], lists
    return [read.filled(one, name) for one, name in named], []


def tokens(value: list[JSON], at: str) -> list[int]:
    if not value:
        raise BadCall(f"Invalid '{at}': the array is empty.", param=at, code="empty_array")
    if set(map(type, value)) == {int} and min(value) >= 0 and max(value) < 2**31:
        return value
    return [read.whole(one, f"{at}[{index}]", 0, 2**31 - 1) for index, one in enumerate(value)]


def write_embeddings(model: str, answer: Answer, as_base64: bool) -> bytes:
    import numpy as np

    values = answer.vectors.values if answer.vectors is not None else np.zeros((0, 0), np.float32)
    rows = np.ascontiguousarray(values, dtype="<f4")
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(row.tobytes()).decode() if as_base64 else row,
        }
        for index, row in enumerate(rows)
    ]
    prompt = (answer.usage.prompt_tokens or 0) if answer.usage else 0
    usage = {"prompt_tokens": prompt, "total_tokens": prompt}
    told = {"object": "list", "data": data, "model": model, "usage": usage}
    return orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY)
