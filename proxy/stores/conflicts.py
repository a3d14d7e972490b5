"""What LanceDB does not let two processes do to one table at once."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

CONFLICT: Final = re.compile(r"conflict|incompatible transaction", re.IGNORECASE)
TRIES: Final = 4


async def settled(work: Callable[[], Awaitable[Any]]) -> None:
    """Of two processes that do it at once one has to begin again.  Raises RuntimeError where that does not help."""
    for left in reversed(range(TRIES)):
        try:
            await work()
            return
        except RuntimeError as error:
            if not left or CONFLICT.search(str(error)) is None:
                raise
            await asyncio.sleep(random.uniform(0.05, 0.5))  # noqa: S311
