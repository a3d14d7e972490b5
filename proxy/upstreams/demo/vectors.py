"""Embeddings without a model: hashed words and parts of words, so that similar texts have similar vectors."""

import hashlib
import re
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
WORD = re.compile(r"\w+")
COMMON = re.compile(
    r"an?|and|are|as|at|be|by|do|does|for|from|has|have|how|i|in|is|it|its|of|on|or|that|the|this|to|was"
    r"|were|what|when|where|which|who|why|will|with|you|your"
)
"""Stop words, which get a tenth of the weight."""


def vector(text: str, dimensions: int) -> Vector:
    """Shape (dimensions,), unit length; the vector of a text without words is a hash of the text."""
    total = np.zeros(dimensions)
    for word in WORD.findall(text.lower()):
        total += _word(word, dimensions)
    if not total.any():
        total += _feature(f"={text}", dimensions)
    return unit(total)


def shortened(full: Vector, dimensions: int) -> Vector:
    """The first `dimensions` coordinates, at unit length; unchanged if `dimensions` is 0 or not smaller."""
    return unit(full[:dimensions].astype(np.float64)) if 0 < dimensions < len(full) else full


def unit(raw: NDArray[np.float64]) -> Vector:
    length = float(np.linalg.norm(raw))
    return (raw / length if length else raw).astype(np.float32)


@lru_cache(maxsize=4096)
def _word(word: str, dimensions: int) -> NDArray[np.float64]:
    """The word itself, and its three-letter parts, so that "cat" and "cats" are similar."""
    edged = f"<{word[:64]}>"
    parts = [edged[place : place + 3] for place in range(len(edged) - 2)]
    total = _feature(word, dimensions)
    for part in parts:
        total = total + _feature(part, dimensions) / len(parts) ** 0.5
    return total * 0.1 if COMMON.fullmatch(word) else total


def _feature(name: str, dimensions: int) -> NDArray[np.float64]:
    """Pseudo-random signs: the vectors of any two features are nearly orthogonal, also if they are shortened."""
    coins = np.frombuffer(hashlib.shake_128(name.encode()).digest(dimensions // 8 + 1), dtype=np.uint8)
    return np.unpackbits(coins)[:dimensions].astype(np.float64) * 2.0 - 1.0
