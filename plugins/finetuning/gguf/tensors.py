"""Reads safetensors.  Source: the format's description in huggingface/safetensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from plugins.finetuning.gguf.refusal import Unfit

KINDS: Final[Mapping[str, Any]] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "F64": np.float64}
MOST_HEADER: Final = 16 * 1024 * 1024
MOST: Final = 100_000
"""Maximum tensors of a file."""


@dataclass(frozen=True, slots=True)
class Place:
    """start, end: bytes of the file."""

    kind: str
    shape: tuple[int, ...]
    start: int
    end: int


class Tensors:
    """One file; tensors are read into memory only when they are requested."""

    def __init__(self, path: Path) -> None:
        """Raises Unfit if the file is malformed."""
        self.path = path
        self.size = path.stat().st_size
        self.places = dict(self.read())

    def read(self) -> Iterator[tuple[str, Place]]:
        with self.path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MOST_HEADER, self.size - 8):
                raise broken("it has no header")
            try:
                header = orjson.loads(file.read(length))
                listed = [(name, one) for name, one in header.items() if name != "__metadata__"]
            except (orjson.JSONDecodeError, AttributeError):
                raise broken("its header is no JSON object") from None
        if len(listed) > MOST:
            raise broken(f"it has more than {MOST} tensors")
        for name, one in listed:
            yield name, self.place(name, one, 8 + length)

    def place(self, name: str, told: Any, data: int) -> Place:
        try:
            kind, shape = told["dtype"], tuple(int(one) for one in told["shape"])
            start, end = (data + int(one) for one in told["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise broken(f"what it says of '{name[:200]}' cannot be read") from None
        if kind not in KINDS:
            raise Unfit(
                f"The tensor '{name[:200]}' is of the type {str(kind)[:20]}; save the adapter as F32, F16 or BF16."
            )
        bytes_ = math.prod(shape) * np.dtype(KINDS[kind]).itemsize
        if min(shape, default=1) < 0 or not data <= start <= end <= self.size or end - start != bytes_:
            raise broken(f"'{name[:200]}' does not fit into it")
        return Place(kind, shape, start, end)

    def get(self, name: str) -> NDArray[np.floating[Any]]:
        """As F32, or F16 if stored so.  Raises Unfit for infinities and NaN."""
        place = self.places[name]
        with self.path.open("rb") as file:
            file.seek(place.start)
            raw = np.frombuffer(file.read(place.end - place.start), KINDS[place.kind]).reshape(place.shape)
        if place.kind == "BF16":  # the upper half of an F32
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        found = raw if raw.dtype == np.float16 else raw.astype(np.float32)
        if not np.isfinite(found).all():
            raise Unfit(f"The tensor '{name[:200]}' contains infinities or NaN: the training has diverged.")
        return found


def broken(why: str) -> Unfit:
    return Unfit(f"adapter_model.safetensors is broken: {why}.")
