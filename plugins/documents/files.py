"""Converts uploaded files to text in a separate process with limits; their type is detected by content."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final

from plugins.documents.contents import Content
from plugins.documents.scratch import scratch
from proxy.errors import BadCall

UNREADABLE: Final = 3
"""Exit status of the process when it has written the reason to standard error."""
SCRIPT: Final = Path(__file__).parent / "reading.py"
PLAIN: Final = (
    ".c", ".cpp", ".cs", ".css", ".go", ".h", ".java", ".js", ".json", ".php", ".py", ".rb", ".rs", ".sh", ".sql",
    ".tex", ".toml", ".ts", ".xml", ".yaml", ".yml",
)  # fmt: skip
KINDS: Final = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".rst": "text",
    ".log": "text",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".pdf": "pdf",
    ".docx": "docx",
    **dict.fromkeys(PLAIN, "text"),
}
MARKS: Final = {b"%PDF-": "pdf", b"PK\x03\x04": "docx"}
LONGEST: Final = 4096
"""Maximum bytes read of that reason."""
BARE: Final = frozenset({"text", "csv", "jsonl"})
"""Kinds that need only the standard library."""


@dataclass(frozen=True, slots=True)
class FileConverter:
    """Limits of a conversion.  memory: bytes.  seconds: timeout.  most: characters of the text.  turns: concurrency."""

    memory: int
    seconds: float
    most: int
    turns: asyncio.Semaphore

    @asynccontextmanager
    async def content(self, file: IO[bytes], name: str) -> AsyncIterator[Content]:
        """The text of a file, valid within the `with` block.  name: only its extension is used.

        Raises BadCall if the file cannot be read.
        """
        kind = kind_of(name, await asyncio.to_thread(begins, file))
        async with scratch() as made:
            async with self.turns:
                await self.read(kind, file, made)
            content = await asyncio.to_thread(Content.of_file, made)
            if content.characters > self.most:
                raise unread(f"it has more than {self.most} characters")
            if content.blank:
                raise unread("there is no text in it")
            yield content

    async def read(self, kind: str, file: IO[bytes], made: IO[bytes]) -> None:
        limits = (str(self.memory), str(max(1, round(self.seconds))), str(4 * self.most))
        how = ("-I", "-S") if kind in BARE else ("-I",)
        async with scratch() as said:
            # Popen uses vfork, which takes a millisecond.  uvloop forks, which takes longer the more memory the server
            # has, and runs LanceDB's fork hooks in the child.
            process = subprocess.Popen(  # noqa: ASYNC220, S603  (no argument comes from a caller)
                [sys.executable, *how, str(SCRIPT), kind, *limits], stdin=file, stdout=made, stderr=said, env={}
            )
            try:
                async with asyncio.timeout(self.seconds):
                    await asyncio.to_thread(process.wait)
            except TimeoutError:
                raise unread(f"reading it takes more than {self.seconds:g} seconds") from None
            finally:
                process.kill()
                await asyncio.to_thread(process.wait)
            if process.returncode == UNREADABLE:
                raise unread(last_words(said))
            if process.returncode:
                raise unread("it is damaged, or takes too much memory to read")


def last_words(said: IO[bytes]) -> str:
    said.seek(0)
    return said.read(LONGEST).decode("utf-8", "replace").strip()[-300:]


def begins(file: IO[bytes]) -> bytes:
    """The first bytes of a file.  It is flushed and rewound, since another process reads it by its descriptor."""
    file.flush()
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    return os.pread(file.fileno(), 8, 0)


def kind_of(name: str, start: bytes) -> str:
    """The kind of a file, by its content; kinds of text by their extension.  Raises BadCall."""
    for mark, kind in MARKS.items():
        if start.startswith(mark):
            return kind
    ending = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    kind = KINDS.get(ending, "")
    if not kind:
        known = ", ".join(sorted(KINDS))
        message = f"Files of the kind '{ending[:20]}' are not supported; supported are: {known}."
        raise BadCall(message, param="file", code="unsupported_file")
    if kind in MARKS.values():
        raise unread(f"it is not a {kind} file, although its name says so")
    return kind


def unread(reason: str) -> BadCall:
    return BadCall(f"The file cannot be read: {reason}.", param="file", code="unreadable_file")
