"""Files that are sent along with a question, as the text that a model is told."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from plugins.documents.fence import fence_of
from plugins.documents.files import Reader
from plugins.documents.prompt import CONTROL, one_line
from proxy.errors import BadCall


@dataclass(frozen=True, slots=True)
class Teller:
    """most: bytes of a file."""

    reader: Reader
    most: int

    async def text(self, name: str, pieces: AsyncIterator[bytes], most: int) -> str:
        """Inside a fence, as passages are: whoever wrote the file need not be whoever sends it."""
        size = 0
        with tempfile.TemporaryFile() as file:
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
    fence = fence_of([name, told])
    return f"{fence} file: {one_line(name)}\n{told}\n{fence} end of file"
