"""Adapters as PEFT saves them, small enough for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "bias": "none", "init_lora_weights": True}
WIDTH, HEADS, HEADS_KV, SIZE = 32, 4, 2, 8
"""The embeddings' length, the numbers of attention heads and of key-value heads, and a head's length."""
FACTS = {
    "general.architecture": "llama",
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": HEADS_KV,
    "llama.embedding_length": WIDTH,
    "llama.block_count": 3,
}
SHAPES = {
    "self_attn.q_proj": (WIDTH, HEADS * SIZE),
    "self_attn.k_proj": (WIDTH, HEADS_KV * SIZE),
    "self_attn.v_proj": (WIDTH, HEADS_KV * SIZE),
    "self_attn.o_proj": (HEADS * SIZE, WIDTH),
    "mlp.gate_proj": (WIDTH, 48),
    "mlp.up_proj": (WIDTH, 48),
    "mlp.down_proj": (48, WIDTH),
}
"""Input and output sizes of each module."""


def name_of(module: str, side: str, block: int = 0) -> str:
    return f"base_model.model.model.layers.{block}.{module}.lora_{side}.weight"


def weights(rank: int = 4, blocks: int = 1, kind: Any = np.float32) -> dict[str, Array]:
    random, made = np.random.default_rng(7), {}
    for block in range(blocks):
        for module, (into, out) in SHAPES.items():
            made[name_of(module, "A", block)] = random.standard_normal((rank, into)).astype(kind)
            made[name_of(module, "B", block)] = random.standard_normal((out, rank)).astype(kind)
    return made


def save(folder: Path, tensors: Mapping[str, Any], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    safetensors.numpy.save_file(dict(tensors), folder / "adapter_model.safetensors")
    return folder
