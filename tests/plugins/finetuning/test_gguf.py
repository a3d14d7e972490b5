"""A converted adapter has the same effect in llama.cpp as where it was trained, or is refused with the reason."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from plugins.finetuning.gguf.adapter import Base, convert
from plugins.finetuning.gguf.names import ARCHITECTURES, place_of
from plugins.finetuning.gguf.refusal import Unfit
from tests.plugins.finetuning.adapters import (
    FACTS,
    HEADS,
    HEADS_KV,
    SHAPES,
    SIZE,
    WIDTH,
    Array,
    name_of,
    save,
    weights,
)

BASE = Base.of(FACTS, Path("nowhere"))


def converted(folder: Path, base: Base = BASE) -> gguf.GGUFReader:
    convert(folder, base, folder / "a.gguf", "ft-tiny")
    return gguf.GGUFReader(folder / "a.gguf")


def tensors(read: gguf.GGUFReader) -> dict[str, Any]:
    return {one.name: np.array(one.data) for one in read.tensors}


def field(read: gguf.GGUFReader, name: str) -> Any:
    found = read.get_field(name)
    assert found is not None
    return found.contents()


def change(read: gguf.GGUFReader, layer: str) -> Array:
    """What llama.cpp adds to a layer's weights; its scale is alpha divided by the tensor's rank."""
    found = tensors(read)
    down, up = found[f"blk.0.{layer}.weight.lora_a"], found[f"blk.0.{layer}.weight.lora_b"]
    made: Array = field(read, "adapter.lora.alpha") / down.shape[0] * up @ down
    return made


def trained(source: dict[str, Array], module: str, scale: float) -> Array:
    made: Array = scale * source[name_of(module, "B")] @ source[name_of(module, "A")]
    return made


def test_the_gguf_librarys_reader_reads_the_file(tmp_path: Path) -> None:
    read = converted(save(tmp_path, weights(blocks=2)))
    facts = {
        name: field(read, name) for name in ("general.type", "general.architecture", "adapter.type", "general.name")
    }
    assert facts == {
        "general.type": "adapter",
        "general.architecture": "llama",
        "adapter.type": "lora",
        "general.name": "ft-tiny",
    }
    assert field(read, "adapter.lora.alpha") == 16
    shapes = {one.name: tuple(int(n) for n in one.shape) for one in read.tensors}
    assert len(shapes) == 2 * 2 * len(SHAPES)
    assert shapes["blk.1.ffn_down.weight.lora_a"] == (48, 4)  # fastest dimension first: input size, rank
    assert shapes["blk.1.ffn_down.weight.lora_b"] == (4, WIDTH)


def test_layers_without_rotary_embeddings_keep_the_trained_values(tmp_path: Path) -> None:
    source = weights()
    read = converted(save(tmp_path, source))
    for module, layer in (
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.up_proj", "ffn_up"),
    ):
        np.testing.assert_allclose(change(read, layer), trained(source, module, 4), rtol=1e-5)


def rotated_in_halves(vector: Array, position: int) -> Array:
    """Rotary embeddings as in the model's own code: pairs of the first and second half of a head."""
    half = SIZE // 2
    angles = position * 10_000.0 ** (-np.arange(half) / half)
    first, second = vector[:half], vector[half:]
    turned = (first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles))
    return np.concatenate(turned)


def rotated_in_pairs(vector: Array, position: int) -> Array:
    """Rotary embeddings as in llama.cpp for this architecture: pairs of neighbours."""
    turned = np.empty_like(vector)
    for pair in range(SIZE // 2):
        angle = position * 10_000.0 ** (-2 * pair / SIZE)
        x, y = vector[2 * pair], vector[2 * pair + 1]
        turned[2 * pair] = x * np.cos(angle) - y * np.sin(angle)
        turned[2 * pair + 1] = x * np.sin(angle) + y * np.cos(angle)
    return turned


def in_gguf_order(rows: Array, heads: int) -> Array:
    """The rows of a base model's matrix in the order of its GGUF."""
    order = [h * SIZE + i + half for h in range(heads) for i in range(SIZE // 2) for half in (0, SIZE // 2)]
    return rows[order]


def test_attention_is_the_same_in_both_rotary_layouts(tmp_path: Path) -> None:
    """Computes attention in both layouts; a wrong order of rows would change it."""
    source, random = weights(), np.random.default_rng(1)
    read = converted(save(tmp_path, source))
    x, y = random.standard_normal((2, WIDTH))
    q, k = random.standard_normal((HEADS * SIZE, WIDTH)), random.standard_normal((HEADS_KV * SIZE, WIDTH))
    theirs_q = (q + trained(source, "self_attn.q_proj", 4)) @ x
    theirs_k = (k + trained(source, "self_attn.k_proj", 4)) @ y
    ours_q = (in_gguf_order(q, HEADS) + change(read, "attn_q")) @ x
    ours_k = (in_gguf_order(k, HEADS_KV) + change(read, "attn_k")) @ y
    for head in range(HEADS):
        own, shared = slice(head * SIZE, head * SIZE + SIZE), head * HEADS_KV // HEADS
        of = slice(shared * SIZE, shared * SIZE + SIZE)
        wanted = rotated_in_halves(theirs_q[own], 5) @ rotated_in_halves(theirs_k[of], 2)
        assert rotated_in_pairs(ours_q[own], 5) @ rotated_in_pairs(ours_k[of], 2) == pytest.approx(wanted, rel=1e-4)
        plain = theirs_q[own] @ theirs_k[of]
        assert abs(wanted - plain) > 1e-3  # the rotation does make a difference


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "gemma2", "gemma3"])
def test_other_architectures_keep_their_rows(tmp_path: Path, architecture: str) -> None:
    source = weights()
    read = converted(save(tmp_path, source), Base(architecture, HEADS, HEADS_KV, WIDTH))
    np.testing.assert_allclose(change(read, "attn_q"), trained(source, "self_attn.q_proj", 4), rtol=1e-5)


def test_rank_stabilised_adapters_keep_their_scale(tmp_path: Path) -> None:
    source = weights()
    read = converted(save(tmp_path, source, use_rslora=True))
    np.testing.assert_allclose(change(read, "attn_v"), trained(source, "self_attn.v_proj", 16 / 2), rtol=1e-5)


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_number_types(tmp_path: Path, kind: Any) -> None:
    source = weights(kind=kind)
    read = converted(save(tmp_path, source))
    found = tensors(read)["blk.0.attn_v.weight.lora_a"]
    assert found.dtype == (np.float16 if kind is np.float16 else np.float32)
    np.testing.assert_allclose(found, source[name_of("self_attn.v_proj", "A")], rtol=1e-6)


def test_bfloat16_numbers(tmp_path: Path) -> None:
    """numpy has no bfloat16, so these are written by hand: 1.5 and -2."""
    header = {
        name_of("mlp.up_proj", "A"): {"dtype": "BF16", "shape": [4, WIDTH], "data_offsets": [0, 256]},
        name_of("mlp.up_proj", "B"): {"dtype": "BF16", "shape": [48, 4], "data_offsets": [256, 640]},
    }
    save(tmp_path, {})
    write_raw(tmp_path, header, b"\xc0\x3f" * 128 + b"\x00\xc0" * 192)
    found = tensors(converted(tmp_path))
    assert (found["blk.0.ffn_up.weight.lora_a"] == 1.5).all() and (found["blk.0.ffn_up.weight.lora_b"] == -2).all()


def write_raw(folder: Path, header: Any, data: bytes) -> None:
    import orjson

    raw = orjson.dumps(header)
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + data)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tensor_names_match_the_gguf_librarys_map(architecture: str) -> None:
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    theirs = gguf.get_tensor_name_map(known[architecture], 40)
    for module in ARCHITECTURES[architecture]:
        place = place_of(f"base_model.model.model.layers.37.{module}.lora_B.weight", architecture)
        assert place.tensor == f"{theirs.get_name(f'model.layers.37.{module}')}.weight"


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.language_model.layers.3.mlp.up_proj.lora_A.weight",
        "base_model.model.language_model.model.layers.3.mlp.up_proj.lora_A.default.weight",
    ],
)
def test_tensor_names_of_vision_models(name: str) -> None:
    assert place_of(name, "gemma3") == (3, "ffn_up", "a")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, "DoRA"),
    ({"bias": "all"}, "bias"),
    ({"lora_bias": True}, "bias"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
    ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
    ({"init_lora_weights": "lora_ga"}, "init_lora_weights"),
    ({"init_lora_weights": [1]}, "init_lora_weights"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    ({"peft_type": "LOHA"}, "LORA"),
    ({"r": 8}, "rank 8"),
    ({"r": None}, "r and lora_alpha"),
    ({"lora_alpha": "16"}, "r and lora_alpha"),
    ({"lora_alpha": 10**300}, "r and lora_alpha"),
]


@pytest.mark.parametrize(("config", "reason"), WRONG)
def test_unsupported_tensors_are_refused_by_name(tmp_path: Path, config: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unfit, match=reason):
        convert(save(tmp_path, weights(), **config), BASE, tmp_path / "a.gguf", "x")


SQUARE = np.zeros((4, WIDTH), np.float32)
EMBEDDING = {"base_model.model.model.embed_tokens.lora_embedding_A": np.zeros((4, 8), np.float32)}
SEEING = {"base_model.model.vision_tower.encoder.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((4, 8), np.float32)}
STRANGE: list[tuple[dict[str, Array], Base, str]] = [
    ({**weights(), **EMBEDDING}, BASE, "no place"),
    ({**weights(), **SEEING}, BASE, "no place"),
    ({name: one for name, one in weights().items() if "q_proj.lora_B" not in name}, BASE, "no counterpart"),
    ({**weights(), name_of("mlp.up_proj", "A").replace("A.", "A.default."): SQUARE}, BASE, "twice"),
    ({}, BASE, "it is empty"),
    (weights(), Base("llama", HEADS, HEADS_KV, 4096, 32), "another model"),
    (weights(blocks=4), BASE, "another model"),
    (weights(), Base("llama", 5, 5, WIDTH), "5 heads"),
    (weights(), Base("mllama", HEADS, HEADS_KV), "'mllama'"),
    ({name: one * np.inf for name, one in weights().items()}, BASE, "diverged"),
    ({name: one.astype(np.int32) for name, one in weights().items()}, BASE, "I32"),
]


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(("source", "base", "reason"), STRANGE)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, source: dict[str, Array], base: Base, reason: str) -> None:
    with pytest.raises(Unfit, match=reason):
        convert(save(tmp_path, source), base, tmp_path / "a.gguf", "x")


RAW = {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]}
NAME = name_of("mlp.up_proj", "A")
BROKEN: list[tuple[Any, bytes]] = [
    ({NAME: RAW}, b"short"),
    ({NAME: {**RAW, "shape": [-4, -8]}}, b"0" * 128),
    ({NAME: {**RAW, "shape": [4, 9]}}, b"0" * 128),
    ({NAME: {**RAW, "data_offsets": [-128, 0]}}, b"0" * 128),
    ({NAME: {**RAW, "data_offsets": [0]}}, b"0" * 128),
    ({NAME: {**RAW, "shape": 2**62}}, b""),
    ({NAME: {**RAW, "shape": ["x"]}}, b""),
    ({NAME: 1}, b""),
    ([1], b""),
]


@pytest.mark.parametrize(("header", "data"), BROKEN)
def test_files_with_false_headers_are_refused(tmp_path: Path, header: Any, data: bytes) -> None:
    save(tmp_path, {})
    write_raw(tmp_path, header, data)
    with pytest.raises(Unfit, match="broken"):
        convert(tmp_path, BASE, tmp_path / "a.gguf", "x")


@pytest.mark.parametrize("raw", [b"", b"\xff" * 8, b"\xff" * 8 + b"{}", struct.pack("<Q", 5) + b"{nope", b"\0" * 20])
def test_other_files_are_refused(tmp_path: Path, raw: bytes) -> None:
    save(tmp_path, {})
    (tmp_path / "adapter_model.safetensors").write_bytes(raw)
    with pytest.raises(Unfit, match="broken"):
        convert(tmp_path, BASE, tmp_path / "a.gguf", "x")


def test_missing_details_are_read_from_the_base_models_configuration(tmp_path: Path) -> None:
    with pytest.raises(Unfit, match="attention heads"):
        Base.of({"general.architecture": "llama"}, tmp_path)
    (tmp_path / "config.json").write_text('{"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}')
    assert Base.of({"general.architecture": "llama"}, tmp_path) == Base("llama", 4, 2, 32)
    assert Base.of({"general.architecture": "qwen2"}, Path("nowhere")).heads == 0
