"""Files that are sent along with a question, as the text that a model is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Final

from plugins.documents.files import Reader
from plugins.documents.prompt import CONTROL, one_line
from plugins.documents.scratch import scratch
from proxy.errors import BadCall, Busy
from proxy.fence import fence_of

MOST: Final = 64
"""Files that are read, or wait for it, at once: each has a whole request behind it."""
LONGEST: Final = 200
"""Letters of a name, the last ones."""


@dataclass(slots=True)
class Teller:
    """most: bytes of a file."""

    reader: Reader
    most: int
    at_once: int = 0

    async def text(self, name: str, pieces: AsyncIterator[bytes], most: int) -> str:
        """Inside a fence, as passages are: whoever wrote the file need not be whoever sends it."""
        if self.at_once >= MOST:
            raise Busy("Too many files in messages are waiting to be read; try again later.", code="busy", wait=5.0)
        self.at_once += 1
        try:
            return await self.read(name, pieces, most)
        finally:
            self.at_once -= 1

    async def read(self, name: str, pieces: AsyncIterator[bytes], most: int) -> str:
        size = 0
        async with scratch() as file:
            async for piece in pieces:
                size += len(piece)
                if size > self.most:
                    message = f"The file cannot be read: it is larger than {self.most} bytes."
                    raise BadCall(message, code="file_too_large")
                await asyncio.to_thread(file.write, piece)
            reader = replace(self.reader, most=max(1, min(self.reader.most, most)))
            async with reader.content(file, name) as content:
                return await asyncio.to_thread(written, name, "".join(content.parts()))


def written(name: str, text: str) -> str:
    """The same file is always written the same way."""
    told = CONTROL.sub(" ", text.replace("\f", "\n")).strip()
    called = one_line(name[-LONGEST:])
    fence = fence_of([called, told])
    return f"{fence} file: {called}\n{told}\n{fence} end of file"
