"""Receives a document as a file in a multipart form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any, Final

import orjson

from plugins.documents.forms import FileDocument
from proxy.errors import BadCall, TooLarge
from proxy.forms import checked
from proxy.host import Part

FORM: Final = "multipart/form-data"


@dataclass(slots=True)
class Form:
    """A received form.  name: the file's name as sent; it is never used as a path."""

    file: IO[bytes]
    name: str = ""
    fields: dict[str, Any] = field(default_factory=dict)

    def checked_fields(self) -> FileDocument:
        """The validated fields.  Raises BadCall."""
        if not self.name:
            raise BadCall("Missing required parameter: 'file'.", param="file", code="missing_required_parameter")
        given = {"title": PurePosixPath(self.name.replace("\\", "/")).name[:500], **self.fields}
        return checked(FileDocument, given, strict=False)


async def received(parts: AsyncIterator[Part], file: IO[bytes], most: int) -> Form:
    """Read a form.  most: maximum bytes of the file.  Raises BadCall, TooLarge, TooSlow or WrongType."""
    form = Form(file)
    async for part in parts:
        await taken(part, form, most)
    return form


async def taken(part: Part, form: Form, most: int) -> None:
    if part.filename is not None or part.name == "file":
        if form.name:
            raise BadCall("Send one file at a time.", param="file", code="invalid_value")
        form.name = part.filename or "file.txt"
        await stored(part, form.file, most)
        return
    text = await part.text()
    form.fields[part.name] = text
    if part.name == "metadata":
        with suppress(orjson.JSONDecodeError):  # the validation of the form reports it
            form.fields[part.name] = orjson.loads(text)


async def stored(part: Part, file: IO[bytes], most: int) -> None:
    size = 0
    async for piece in part.pieces():
        size += len(piece)
        if size > most:
            raise TooLarge(f"The file is larger than {most} bytes.", param="file", code="request_too_large")
        await asyncio.to_thread(file.write, piece)
    await asyncio.to_thread(file.flush)
