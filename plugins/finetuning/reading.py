"""Reads callers' files as datasets: copied to the local disk, and parsed in a thread."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from os import SEEK_END
from pathlib import Path
from threading import Event
from typing import Final

from plugins.finetuning.dataset import Report, read_file
from proxy.errors import BadCall, NotFound
from proxy.file_access import FileAccess, FileInfo, FileStore
from proxy.host import shielded

PURPOSE: Final = "fine-tune"
PREFIX: Final = "reading-"
"""Prefix of folders in which a file is being read."""
AT_ONCE: Final = 2


@dataclass(frozen=True, slots=True)
class Datasets:
    """folder: for temporary copies.  least: minimum examples of a dataset.  most: maximum bytes."""

    file_access: FileAccess
    folder: Path
    least: int
    most: int
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    @property
    def file_store(self) -> FileStore:
        """Raises NotFound if no feature stores files."""
        if self.file_access.store is None:
            message = "This server keeps no files: its configuration has to name the plugin `files`."
            raise NotFound(message, param="training_file", code="file_not_found")
        return self.file_access.store

    async def file(self, owner: str, id: str, param: str) -> FileInfo:
        """Raises NotFound, also for another owner's file, and BadCall if it cannot be a dataset."""
        file = (await self.file_store.find(owner, [id])).get(id)
        if file is None:
            raise NotFound(f"No file of yours has the id '{id[:100]}'.", param=param, code="file_not_found")
        if file.purpose != PURPOSE:
            message = f"Invalid '{param}': the purpose of '{id[:100]}' is '{file.purpose}', not '{PURPOSE}'."
            raise BadCall(message, param=param, code="invalid_file_purpose")
        if file.bytes > self.most:
            message = f"Invalid '{param}': '{id[:100]}' has more than {self.most} bytes."
            raise BadCall(message, param=param, code="file_too_large")
        return file

    async def read(
        self, owner: str, id: str, param: str, least: int | None = None, target: Path | None = None
    ) -> Report:
        """Check a file, and write its examples to `target`.

        least: minimum number of examples, if not the default.  Raises NotFound and BadCall.
        """
        file = await self.file(owner, id, param)
        over = Event()
        async with self.turns:
            await asyncio.to_thread(self.folder.mkdir, 0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=PREFIX) as place:
                spool = Path(place) / "file"
                await self.fetch(owner, id, spool)
                least = self.least if least is None else least
                reading = asyncio.ensure_future(
                    asyncio.to_thread(read_into, target, spool, file.name, least, over.is_set)
                )
                try:
                    return await asyncio.shield(reading)
                finally:
                    over.set()
                    await shielded(asyncio.wait([reading]))  # the thread still has the files open

    async def fetch(self, owner: str, id: str, path: Path) -> None:
        await asyncio.to_thread(path.touch)
        async for piece in self.file_store.pieces(owner, id):
            await asyncio.to_thread(append, path, piece)


# Each file is opened and closed in the same thread: a cancelled caller would never close a file that a thread opened.


def append(path: Path, piece: bytes) -> None:
    with path.open("r+b") as file:  # unlike "ab" it does not create a file that was deleted
        file.seek(0, SEEK_END)
        file.write(piece)


def read_into(target: Path | None, spool: Path, name: str, least: int, over: Callable[[], bool]) -> Report:
    if target is None:
        return read_file(spool, name, least, None, over)
    with target.open("wb") as sink:
        return read_file(spool, name, least, sink, over)
