"""The library's files of counts, with all their bytes on the disk before they are mapped into memory.

The library leaves holes in them, and the system kills whoever writes into one while the disk is full.
"""

from __future__ import annotations

import os
from typing import Final

from prometheus_client.mmap_dict import MmapedDict

FIRST: Final = 1 << 16
"""Bytes of a new file."""
BESIDE: Final = 64
"""Bytes that a value takes beside its key, at most."""


class Filled(MmapedDict):
    """Raises OSError where the disk has no room for another value; those that are there go on."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not (read_mode or os.path.exists(filename)):
            with open(f"{filename}.new", "ab") as file:  # whoever collects counts reads no file that is empty yet
                fill(file.fileno(), FIRST)
            os.replace(f"{filename}.new", filename)
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]  # the library has no types

    def _init_value(self, key: str) -> None:
        if self._used + len(key.encode()) + BESIDE > self._capacity:
            fill(self._f.fileno(), 2 * self._capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]


def fill(file: int, size: int) -> None:
    """file: opened to append."""
    while (missing := size - os.fstat(file).st_size) > 0:
        os.write(file, bytes(missing))
