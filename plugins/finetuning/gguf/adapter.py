"""Converts a LoRA of PEFT to a GGUF that llama.cpp applies exactly as it was trained, or explains why it cannot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from plugins.finetuning.gguf.names import NARROW, PERMUTED, Place, place_of
from plugins.finetuning.gguf.refusal import Unfit
from plugins.finetuning.gguf.tensors import Tensors
from plugins.finetuning.gguf.writing import Tensor, write
from proxy.types import JSON

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
MOST_CONFIG: Final = 1024 * 1024
MOST_ALPHA: Final = 1e6
PLAIN: Final[Mapping[str, str]] = {
    "use_dora": "DoRA scales whole rows, which an adapter cannot",
    "modules_to_save": "whole modules are not part of an adapter",
    "rank_pattern": "all layers must have one rank",
    "alpha_pattern": "all layers must have one alpha",
    "lora_bias": "biases are not part of an adapter",
    "fan_in_fan_out": "its weights are stored the other way round",
    "layer_replication": "layers cannot be repeated",
    "trainable_token_indices": "embeddings are not part of an adapter",
    "alora_invocation_tokens": "it is active for a part of an answer only",
    "target_parameters": "only modules can be mapped",
    "lora_ga_config": "it begins by changing the base model",
    "kasa_config": "it scales ranks one by one",
    "monteclora_config": "its weights are drawn anew at every step",
    "arrow_config": "it mixes several adapters",
    "use_qalora": "its inputs are pooled, which an adapter cannot",
}
"""Settings of PEFT that must be off, and why."""
STARTS: Final = (None, True, False, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base model unchanged; others, such as PiSSA, change it, unlike Ollama's base."""


@dataclass(frozen=True, slots=True)
class Config:
    rank: int
    alpha: float

    @classmethod
    def read(cls, folder: Path) -> Config:
        """Raises Unfit."""
        found = document(folder / CONFIG)
        if (kind := found.get("peft_type")) != "LORA":
            raise Unfit(f"{CONFIG}: peft_type is {str(kind)[:50]!r}, and only a LORA can be an adapter.")
        for name, why in PLAIN.items():
            if found.get(name):
                raise Unfit(f"{CONFIG}: {name} is set: {why}.  Merge the model, or train without.")
        if found.get("bias", "none") != "none":
            raise Unfit(
                f"{CONFIG}: bias is {str(found['bias'])[:20]!r}: biases are not part of an adapter; set 'none'."
            )
        if found.get("init_lora_weights") not in STARTS:
            raise Unfit(f"{CONFIG}: init_lora_weights changes the base model, which stays as it is; use true.")
        rank, alpha = found.get("r"), found.get("lora_alpha")
        if type(rank) is not int or rank < 1 or not isinstance(alpha, (int, float)) or not 0 < alpha < MOST_ALPHA:
            raise Unfit(f"{CONFIG}: r and lora_alpha are missing, or no numbers above 0.")
        # llama.cpp scales by alpha / r; rank-stabilised LoRA was trained with alpha / sqrt(r).
        return cls(rank, float(alpha) * math.sqrt(rank) if found.get("use_rslora") else float(alpha))


@dataclass(frozen=True, slots=True)
class Base:
    """What must be known about the base model.  width: of its embeddings; 0 means unknown, as do 0 blocks."""

    architecture: str
    heads: int
    heads_kv: int
    width: int = 0
    blocks: int = 0

    @classmethod
    def of(cls, facts: Mapping[str, JSON], folder: Path) -> Base:
        """facts: by GGUF's names.  Missing ones are taken from the model's `config.json`, if the trainer put it into
        this folder.  Raises Unfit."""
        architecture = str(facts.get("general.architecture") or "")
        own = document(folder / "config.json") if (folder / "config.json").is_file() else {}
        own = own.get("text_config") or own

        def number(name: str, theirs: str) -> int:
            for found in (facts.get(f"{architecture}.{name}"), own.get(theirs)):
                if type(found) is int and found > 0:
                    return found
            return 0

        heads = number("attention.head_count", "num_attention_heads")
        made = cls(
            architecture,
            heads,
            number("attention.head_count_kv", "num_key_value_heads") or heads,
            number("embedding_length", "hidden_size"),
            number("block_count", "num_hidden_layers"),
        )
        if architecture in PERMUTED and not heads:
            raise Unfit(
                "The number of the base's attention heads is not known: write its config.json next to the adapter."
            )
        return made


def convert(folder: Path, base: Base, target: Path, name: str) -> int:
    """The number of layers that the adapter changes.  Raises Unfit, and OSError if a file is missing."""
    config, weights = Config.read(folder), Tensors(folder / WEIGHTS)
    places = {place_of(one, base.architecture): one for one in weights.places}
    if len(places) != len(weights.places):
        raise Unfit(f"{WEIGHTS}: it contains a layer twice.")
    if not places:
        raise Unfit(f"{WEIGHTS}: it is empty.")
    facts: dict[str, str | float] = {
        "general.architecture": base.architecture,
        "general.type": "adapter",
        "general.name": name,
        "adapter.type": "lora",
        "adapter.lora.alpha": config.alpha,
    }
    tensors = list(written(places, weights, base, config.rank))
    write(target, facts, tensors)
    return len(tensors) // 2


def written(places: Mapping[Place, str], weights: Tensors, base: Base, rank: int) -> Iterator[Tensor]:
    for place, name in sorted(places.items()):
        other = place._replace(side="b" if place.side == "a" else "a")
        if other not in places:
            raise Unfit(f"'{name[:200]}' has no counterpart.")
        if place.side == "b":
            continue
        check(place, weights.places[name].shape, weights.places[places[other]].shape, base, rank)
        for side in (place, other):
            stored = weights.places[places[side]]
            kind = "F16" if stored.kind == "F16" else "F32"
            load = partial(loaded, weights, places[side], side, base)
            yield Tensor(f"{side.tensor}.lora_{side.side}", stored.shape, kind, load)


def check(place: Place, down: tuple[int, ...], up: tuple[int, ...], base: Base, rank: int) -> None:
    """down, up: shapes of A, which maps to the rank, and of B, which maps from it.  Raises Unfit."""
    if len(down) != 2 or len(up) != 2 or down[0] != rank or up[1] != rank:
        raise Unfit(f"{place.tensor}: A {down} and B {up} do not fit the rank {rank}.")
    outward = up[0] if place.layer in NARROW else down[1]
    if (base.width and outward != base.width) or (base.blocks and place.block >= base.blocks):
        raise Unfit(
            f"{place.tensor}: the adapter was made for another model than the base, whose embeddings have "
            f"{base.width or 'unknown'} numbers, and which has {base.blocks or 'unknown'} blocks."
        )
    if (heads := heads_of(place, base)) and up[0] % (2 * heads):
        raise Unfit(f"{place.tensor}: {up[0]} rows are not those of {heads} heads.")


def heads_of(place: Place, base: Base) -> int:
    """The number of heads by which a layer's rows of B must be reordered; 0 means not at all."""
    if base.architecture not in PERMUTED:
        return 0
    return {"attn_q": base.heads, "attn_k": base.heads_kv}.get(place.layer, 0)


def loaded(weights: Tensors, name: str, place: Place, base: Base) -> NDArray[np.floating[Any]]:
    found = weights.get(name)
    heads = heads_of(place, base)
    return permuted(found, heads) if heads and place.side == "b" else found


def permuted(rows: NDArray[np.floating[Any]], heads: int) -> NDArray[np.floating[Any]]:
    """The rows of each head interleaved.

    Rotary embeddings rotate pairs of numbers: in the original files these are in the first and the second half of a
    head, in a GGUF of this kind they are adjacent.  Rows of B are a layer's outputs, so only B is reordered, never A.
    """
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def document(path: Path) -> dict[str, JSON]:
    """Raises Unfit."""
    try:
        with path.open("rb") as file:
            found = orjson.loads(file.read(MOST_CONFIG))
    except FileNotFoundError:
        raise Unfit(f"The trainer has not written {path.name}.") from None
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise Unfit(f"{path.name} is no JSON object.")
    return found
