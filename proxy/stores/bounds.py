"""Limits for LanceDB's memory, which by default may be gigabytes and grows with its tables."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from typing import Final

INDICES: Final = 256 * 1024 * 1024
METADATA: Final = 64 * 1024 * 1024
"""Bytes of the caches for indices and for metadata of tables; LanceDB's own defaults are gigabytes."""
TUNED: Final = {
    "LANCEDB_LOG": "error",  # its warnings are also in its errors, or not useful
    "LANCE_DEFAULT_BATCH_SIZE": "1024",
    "LANCE_DEFAULT_IO_BUFFER_SIZE": str(64 * 1024 * 1024),
    "LANCE_FTS_PARTITION_SIZE": "8",
}
"""LanceDB's environment variables, set unless they already are: rows that it reads at once, bytes that it reads ahead,
and MiB of text that it indexes before it writes them.  By default the last two are gigabytes, and tending a table takes
memory in proportion to its rows."""
TENDING: Final = 16 * 1024 * 1024
"""Bytes of the caches while a table is tended; they are small, because searches may never need what tending reads."""
HEAPS: Final = {-8: max(2, min(4, os.cpu_count() or 1)), -1: 1024 * 1024, -3: 1024 * 1024}
"""Parameters of glibc's malloc: the number of heaps (M_ARENA_MAX), and the sizes from which on free memory at the end
of a heap (M_TRIM_THRESHOLD) and large allocations (M_MMAP_THRESHOLD) are returned to the system."""


def bound_environment() -> None:
    """Set the environment variables.  Must be called before LanceDB is imported."""
    for name, value in TUNED.items():
        os.environ.setdefault(name, value)


def bound_heaps() -> None:
    """Limit glibc's heaps.  Otherwise each of LanceDB's many threads has its own, and glibc returns little of them to
    the system: indexing a hundred megabytes of text took half a gigabyte more."""
    with suppress(OSError, AttributeError, TypeError):  # another system, or another C library
        libc = ctypes.CDLL(None)
        for parameter, limit in HEAPS.items():
            libc.mallopt(parameter, limit)


def trim_heaps() -> None:
    """Return free memory to the system, also from the middle of heaps."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
