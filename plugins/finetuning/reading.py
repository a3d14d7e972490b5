"""Callers' files as datasets: fetched to this machine's disk, and read beside the event loop."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Final

from plugins.finetuning.dataset import Report, read_file
from proxy.errors import BadCall, NotFound
from proxy.filing import Cabinet, Filed, Keeper
from proxy.host import surely

PURPOSE: Final = "fine-tune"
PREFIX: Final = "reading-"
"""How folders begin in which a file is being read."""
AT_ONCE: Final = 2


@dataclass(frozen=True, slots=True)
class Datasets:
    """folder: where files are put while they are read.  least: examples of a dataset.  most: bytes."""

    cabinet: Cabinet
    folder: Path
    least: int
    most: int
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    @property
    def keeper(self) -> Keeper:
        """Raises NotFound where no feature keeps files."""
        if self.cabinet.keeper is None:
            message = "This server keeps no files: its configuration has to name the plugin `files`."
            raise NotFound(message, param="training_file", code="file_not_found")
        return self.cabinet.keeper

    async def file(self, owner: str, id: str, param: str) -> Filed:
        """Raises NotFound, also for what is another's, and BadCall for one that is no dataset."""
        file = (await self.keeper.found(owner, [id])).get(id)
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
        """What is in it, and all of its examples in one form in `target`.

        least: examples that it must have, other than usual.  Raises NotFound and BadCall.
        """
        file = await self.file(owner, id, param)
        over = Event()
        async with self.turns:
            with ExitStack() as opened:
                await asyncio.to_thread(self.folder.mkdir, 0o700, parents=True, exist_ok=True)
                spool = Path(opened.enter_context(tempfile.TemporaryDirectory(dir=self.folder, prefix=PREFIX))) / "file"
                await self.fetch(owner, id, spool)
                least = self.least if least is None else least
                sink = None if target is None else opened.enter_context(await asyncio.to_thread(target.open, "wb"))
                reading = asyncio.ensure_future(
                    asyncio.to_thread(read_file, spool, file.name, least, sink, over.is_set)
                )
                try:
                    return await asyncio.shield(reading)
                finally:
                    over.set()
                    await surely(asyncio.wait([reading]))  # it holds the files

    async def fetch(self, owner: str, id: str, path: Path) -> None:
        file = await asyncio.to_thread(path.open, "wb")
        try:
            async for piece in self.keeper.pieces(owner, id):
                await asyncio.to_thread(file.write, piece)
        finally:
            await asyncio.to_thread(file.close)
