"""What LanceDB may take of memory, which is gigabytes by its own bounds, and grows with its tables."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from typing import Final

INDICES: Final = 256 * 1024 * 1024
METADATA: Final = 64 * 1024 * 1024
"""Bytes of indices, and of what is known of tables, that stay in memory; LanceDB's own bounds are gigabytes."""
TUNED: Final = {
    "LANCEDB_LOG": "error",  # what it warns of, its errors tell, or nobody need know
    "LANCE_DEFAULT_BATCH_SIZE": "1024",
    "LANCE_DEFAULT_IO_BUFFER_SIZE": str(64 * 1024 * 1024),
    "LANCE_FTS_PARTITION_SIZE": "8",
}
"""Settings of LanceDB's that it reads from the environment, unless they are there already: how many rows it reads at
once, how many bytes it reads ahead, and how many MiB of words it indexes before it writes them.  It would take
gigabytes of the last two, and when a table is tended as much memory as there are rows."""
TENDING: Final = 16 * 1024 * 1024
"""Bytes of indices that stay in memory while a table is tended: what that reads, no search may ever ask for."""
HEAPS: Final = {-8: max(2, min(4, os.cpu_count() or 1)), -1: 1024 * 1024, -3: 1024 * 1024}
"""Of glibc: how many (M_ARENA_MAX), and from how many bytes on what is free at the end of one, or was taken at once,
goes back to the system (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD)."""


def bound_environment() -> None:
    """Before LanceDB is imported."""
    for name, value in TUNED.items():
        os.environ.setdefault(name, value)


def bound_heaps() -> None:
    """LanceDB's many threads would each take memory from a heap of its own, of which glibc gives little back: a hundred
    megabytes of text left half a gigabyte more behind than so."""
    with suppress(OSError, AttributeError, TypeError):  # another system, or another C library
        libc = ctypes.CDLL(None)
        for parameter, limit in HEAPS.items():
            libc.mallopt(parameter, limit)


def trim_heaps() -> None:
    """What was freed in the middle of a heap goes back to the system, too."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
