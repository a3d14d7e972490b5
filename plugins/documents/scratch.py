"""A file that nobody else sees, for as long as a block lasts."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import IO

from proxy.host import shielded


@asynccontextmanager
async def scratch() -> AsyncIterator[IO[bytes]]:
    """It is closed by a thread: to free what the system has of a hundred megabytes would hold the event loop."""
    file = tempfile.TemporaryFile()  # noqa: SIM115  (a `with` would close it here)
    try:
        yield file
    finally:
        await shielded(asyncio.to_thread(file.close))
