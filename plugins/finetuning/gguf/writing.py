"""Writes GGUF.  Source: docs/gguf.md in ggml-org/ggml, version 3."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

ALIGNMENT: Final = 32
KINDS: Final = {"F32": 0, "F16": 1}
SIZES: Final = {"F32": 4, "F16": 2}
FLOAT, TEXT = 6, 8


@dataclass(frozen=True, slots=True)
class Tensor:
    """shape: in numpy's order.  load: returns the values when they are written, as float32 or float16 (see `kind`)."""

    name: str
    shape: tuple[int, ...]
    kind: str
    load: Callable[[], NDArray[np.floating[Any]]]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape)) * SIZES[self.kind]


def write(path: Path, facts: Mapping[str, str | float], tensors: Sequence[Tensor]) -> None:
    """Write a file with this metadata and these tensors; one tensor is in memory at a time."""
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts)))
        for name, fact in facts.items():
            file.write(text(name) + value(fact))
        offset = 0
        for one in tensors:
            shape = one.shape[::-1]  # GGUF has the fastest dimension first
            file.write(text(one.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
            file.write(struct.pack("<IQ", KINDS[one.kind], offset))
            offset += one.size + -one.size % ALIGNMENT
        pad(file)
        for one in tensors:
            file.write(np.ascontiguousarray(one.load(), f"<f{SIZES[one.kind]}").tobytes())
            pad(file)


def pad(file: BinaryIO) -> None:
    file.write(b"\0" * (-file.tell() % ALIGNMENT))


def text(written: str) -> bytes:
    raw = written.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(fact: str | float) -> bytes:
    return struct.pack("<I", TEXT) + text(fact) if isinstance(fact, str) else struct.pack("<If", FLOAT, fact)
