"""The names of layers: PEFT's, which follow the model's own modules, and those in a GGUF."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from plugins.finetuning.gguf.refusal import Unfit

USUAL: Final[Mapping[str, str]] = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
FUSED: Final[Mapping[str, str]] = {
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ARCHITECTURES: Final[Mapping[str, Mapping[str, str]]] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"), USUAL),
    "phi3": FUSED,
}
"""By `general.architecture`; Mistral's models are `llama` there, too."""
PERMUTED: Final = frozenset({"llama"})
"""Architectures whose GGUF has the rows of queries and keys in a different order than the original files."""
NARROW: Final = frozenset({"attn_output", "ffn_down"})
"""Layers whose output has the size of an embedding; for all others it is the input."""
NAME: Final = re.compile(
    r"base_model\.model\.(?:model\.)?(?:language_model\.)?(?:model\.)?layers\.(\d{1,5})\.([a-z_.]+)"
    r"\.lora_(A|B)(?:\.default)?\.weight"
)


class Place(NamedTuple):
    """layer: the name of the base model's tensor without its ending, such as `attn_q`."""

    block: int
    layer: str
    side: Literal["a", "b"]

    @property
    def tensor(self) -> str:
        return f"blk.{self.block}.{self.layer}.weight"


def place_of(name: str, architecture: str) -> Place:
    """The place of a PEFT tensor in the GGUF.  Raises Unfit."""
    layers = ARCHITECTURES.get(architecture)
    if layers is None:
        known = ", ".join(ARCHITECTURES)
        raise Unfit(
            f"Adapters of the architecture '{architecture[:50]}' cannot be converted to GGUF, only those of {known}.  "
            "Have the trainer write a GGUF itself."
        )
    found = NAME.fullmatch(name)
    if found is None or found[2] not in layers:
        wanted = ", ".join(one.rpartition(".")[2] for one in layers)
        raise Unfit(f"'{name[:200]}' has no place in a GGUF adapter.  Train only these modules: {wanted}.")
    return Place(int(found[1]), layers[found[2]], "a" if found[3] == "A" else "b")
