"""Temporary files."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import pytest

from plugins.documents.scratch import scratch


async def test_a_file_is_closed_however_often_its_user_is_cancelled() -> None:
    opened: list[IO[bytes]] = []

    async def use() -> None:
        async with scratch() as file:
            opened.append(file)
            await asyncio.Event().wait()

    go = threading.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    busy, using = asyncio.ensure_future(asyncio.to_thread(go.wait, 10)), asyncio.ensure_future(use())
    await asyncio.sleep(0.01)
    for _ in range(3):
        using.cancel()
        await asyncio.sleep(0.01)
    assert not opened[0].closed, "the only thread is busy"
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await using
    await busy
    assert opened[0].closed
