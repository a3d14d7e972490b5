"""One process of this machine at a time, beside a database that is a file."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

LOOK: Final = 0.02
"""Seconds between two looks whether it is this one's turn: a thread that waits for it could not be called back."""


@asynccontextmanager
async def held(path: str) -> AsyncIterator[None]:
    """The system's lock on this file, for as long as the block lasts: who is killed lets the next one in.

    The file stays, as the lock would be another one's if it were made anew.  Raises OSError where it cannot be made.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        while not taken(file):  # noqa: ASYNC110  (the system tells nobody)
            await asyncio.sleep(LOOK)
        yield
    finally:
        os.close(file)


def taken(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
