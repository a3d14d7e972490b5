"""Repeats changes of a LanceDB table that conflict with those of another process."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

CONFLICT: Final = re.compile(r"conflict|incompatible transaction", re.IGNORECASE)
TRIES: Final = 4


async def settled(work: Callable[[], Awaitable[Any]]) -> None:
    """Run `work`, again if it conflicts with another process.  Raises RuntimeError if it fails or keeps conflicting."""
    for left in reversed(range(TRIES)):
        try:
            await work()
            return
        except RuntimeError as error:
            if not left or CONFLICT.search(str(error)) is None:
                raise
            await asyncio.sleep(random.uniform(0.05, 0.5))  # noqa: S311
