"""Converts files in chat messages to text for the prompt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Final

from plugins.documents.files import FileConverter
from plugins.documents.prompt import CONTROL, one_line
from plugins.documents.scratch import scratch
from proxy.errors import BadCall, Busy
from proxy.fence import fence_of

MOST: Final = 64
"""Maximum files being read or waiting at once; each holds a whole request in memory."""
LONGEST: Final = 200
"""Maximum characters of a file name; the end of it is kept."""


@dataclass(slots=True)
class FileTextExtractor:
    """most: maximum bytes of a file."""

    reader: FileConverter
    most: int
    at_once: int = 0

    async def text(self, name: str, pieces: AsyncIterator[bytes], most: int) -> str:
        """The text inside a fence, like passages, since the file's author may not be the caller.

        most: maximum characters.  Raises BadCall, Busy.
        """
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
    """The fenced text; deterministic, so that prompts with the same file can be cached."""
    told = CONTROL.sub(" ", text.replace("\f", "\n")).strip()
    called = one_line(name[-LONGEST:])
    fence = fence_of([called, told])
    return f"{fence} file: {called}\n{told}\n{fence} end of file"
