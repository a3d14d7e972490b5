"""The Prometheus library's mmapped files, with all their bytes allocated on the disk before they are written to.

The library creates sparse files, and the kernel kills a process that writes to a hole while the disk is full.
"""

from __future__ import annotations

import os
from typing import Final

from prometheus_client.mmap_dict import MmapedDict

FIRST: Final = 1 << 16
"""Bytes of a new file."""
BESIDE: Final = 64
"""Maximum bytes that a value takes in addition to its key."""


class Filled(MmapedDict):
    """Raises OSError if the disk has no room for a new value; existing values can still be updated."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not (read_mode or os.path.exists(filename)):
            with open(f"{filename}.new", "ab") as file:  # a collecting worker must never read an empty file
                fill(file.fileno(), FIRST)
            os.replace(f"{filename}.new", filename)
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]  # the library has no types

    def _init_value(self, key: str) -> None:
        if self._used + len(key.encode()) + BESIDE > self._capacity:
            fill(self._f.fileno(), 2 * self._capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]


def fill(file: int, size: int) -> None:
    """Extend the file with zeros.  file: a descriptor opened to append."""
    while (missing := size - os.fstat(file).st_size) > 0:
        os.write(file, bytes(missing))
