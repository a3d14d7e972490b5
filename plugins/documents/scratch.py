"""Anonymous temporary files."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import IO

from proxy.host import shielded


@asynccontextmanager
async def scratch() -> AsyncIterator[IO[bytes]]:
    """A temporary file for the length of a `with` block.

    A thread closes it, because freeing a hundred megabytes of page cache would block the event loop.
    """
    file = tempfile.TemporaryFile()  # noqa: SIM115  (a `with` would close it here)
    try:
        yield file
    finally:
        await shielded(asyncio.to_thread(file.close))
