"""A lock file next to an SQLite database, for one process of this machine at a time."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

LOOK: Final = 0.02
"""Seconds between two tries: a thread that waits in a blocking call could not be cancelled."""


@asynccontextmanager
async def lock_file(path: str) -> AsyncIterator[None]:
    """Hold the system's lock on this file while the block runs; it is also released if the process is killed.

    The file is not deleted, because a new file would have a different lock.  Raises OSError if it cannot be created.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        while not try_lock(file):  # noqa: ASYNC110  (the system does not notify of a free lock)
            await asyncio.sleep(LOOK)
        yield
    finally:
        os.close(file)


def try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
