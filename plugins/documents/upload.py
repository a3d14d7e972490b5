"""A document that is sent as a file, in a form of several parts."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any, Final

import aiohttp
import orjson
from aiohttp import web
from pydantic import ValidationError

from plugins.documents.forms import FileDocument
from proxy.errors import BadCall, TooLarge, TooSlow

FORM: Final = "multipart/form-data"
PIECE: Final = 256 * 1024
FIELD: Final = 64 * 1024
"""Bytes of a field that is no file."""
MOST: Final = 16
"""Parts of a form."""
PATIENCE: Final = 30.0
"""Seconds that the next piece may take to arrive."""


@dataclass(slots=True)
class Form:
    """name: of the file, as its sender calls it; nothing is ever opened by it."""

    file: IO[bytes]
    name: str = ""
    fields: dict[str, Any] = field(default_factory=dict)

    def told(self) -> FileDocument:
        """Raises BadCall."""
        if not self.name:
            raise BadCall("Missing required parameter: 'file'.", param="file", code="missing_required_parameter")
        given = {"title": PurePosixPath(self.name.replace("\\", "/")).name[:500], **self.fields}
        try:
            return FileDocument.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise BadCall(f"Invalid '{name}': {first['msg']}.", param=name, code="invalid_value") from None


async def received(request: web.BaseRequest, file: IO[bytes], most: int) -> Form:
    """most: bytes of the file.  Raises BadCall, TooLarge or TooSlow."""
    form = Form(file)
    try:
        reader = await request.multipart()
        for _ in range(MOST):
            part = await asyncio.wait_for(reader.next(), PATIENCE)
            if part is None:
                return form
            if not isinstance(part, aiohttp.BodyPartReader):
                raise BadCall("The form has a form inside.", code="invalid_body")
            await taken(part, form, most)
    except TimeoutError:
        raise TooSlow(f"Nothing of the file came for {PATIENCE:g} seconds.", code="invalid_body") from None
    except (ValueError, AssertionError, RuntimeError, web.RequestPayloadError, web.HTTPException) as error:
        raise BadCall(f"The form cannot be read: {str(error)[:200]}.", code="invalid_body") from None
    raise BadCall(f"The form has more than {MOST} parts.", code="invalid_body")


async def taken(part: aiohttp.BodyPartReader, form: Form, most: int) -> None:
    if part.filename is not None or part.name == "file":
        if form.name:
            raise BadCall("Send one file at a time.", param="file", code="invalid_value")
        form.name = part.filename or "file.txt"
        await stored(part, form.file, most)
        return
    name = str(part.name or "")[:64]
    text = (await whole(part, name)).decode("utf-8", "replace")
    form.fields[name] = text
    if name == "metadata":
        with suppress(orjson.JSONDecodeError):  # else the form's check says what is wrong
            form.fields[name] = orjson.loads(text)


async def stored(part: aiohttp.BodyPartReader, file: IO[bytes], most: int) -> None:
    size = 0
    while piece := await asyncio.wait_for(part.read_chunk(PIECE), PATIENCE):
        size += len(piece)
        if size > most:
            raise TooLarge(f"The file is larger than {most} bytes.", param="file", code="request_too_large")
        await asyncio.to_thread(file.write, piece)
    await asyncio.to_thread(file.flush)


async def whole(part: aiohttp.BodyPartReader, name: str) -> bytes:
    data = b""
    while piece := await asyncio.wait_for(part.read_chunk(PIECE), PATIENCE):
        data += piece
        if len(data) > FIELD:
            raise TooLarge(f"Invalid '{name}': it is larger than {FIELD} bytes.", param=name, code="request_too_large")
    return data


def temporary() -> IO[bytes]:
    return tempfile.TemporaryFile()
