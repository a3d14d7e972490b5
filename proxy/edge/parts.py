"""Reads multipart forms as they arrive, within limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from proxy.edge.body import UNREADABLE, welcome
from proxy.errors import BadCall, TooLarge, TooSlow, WrongType

FORM: Final = "multipart/form-data"
CHUNK: Final = 256 * 1024
FIELD: Final = 64 * 1024
"""Maximum bytes of a part that is not a file."""
MOST: Final = 16
"""Maximum number of parts in a form."""
PATIENCE: Final = 30.0
"""Seconds to wait for the next bytes."""


@contextmanager
def readable() -> Iterator[None]:
    """Turns errors while reading a form into ones that tell the client what is wrong with it."""
    try:
        yield
    except TimeoutError:
        raise TooSlow(f"Nothing of the form came for {PATIENCE:g} seconds.", code=UNREADABLE) from None
    except HttpProcessingError as error:  # in the head of a part
        raise unreadable(error.message) from None
    except (ValueError, AssertionError, RuntimeError, web.RequestPayloadError, web.HTTPException) as error:
        raise unreadable(str(error)) from None


def unreadable(why: str) -> BadCall:
    told = " ".join(why.split())[:200]
    return BadCall(f"The form cannot be read: {told}.", code=UNREADABLE)


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a form.  It must be read before the next one is requested."""

    reader: aiohttp.BodyPartReader
    name: str

    @property
    def filename(self) -> str | None:
        return self.reader.filename

    async def pieces(self) -> AsyncIterator[bytes]:
        while True:
            with readable():
                async with asyncio.timeout(PATIENCE):
                    piece = await self.reader.read_chunk(CHUNK)
            if not piece:
                return
            yield piece

    async def text(self) -> str:
        """The value of a field.  Raises TooLarge beyond `FIELD` bytes."""
        data = b""
        async for piece in self.pieces():
            data += piece
            if len(data) > FIELD:
                message = f"Invalid '{self.name}': it is larger than {FIELD} bytes."
                raise TooLarge(message, param=self.name, code="request_too_large")
        return data.decode("utf-8", "replace")


async def parts_of(request: web.BaseRequest) -> AsyncIterator[Part]:
    """The parts of a form as they arrive.  Raises WrongType, TooSlow or BadCall."""
    if request.content_type != FORM:
        given = request.content_type[:100]
        raise WrongType(f"Unsupported content type '{given}': send '{FORM}'.", code="unsupported_media_type")
    await welcome(request)
    with readable():
        reader = await request.multipart()
    for _ in range(MOST):
        with readable():
            async with asyncio.timeout(PATIENCE):
                part = await reader.next()
        if part is None:
            return
        if not isinstance(part, aiohttp.BodyPartReader):
            raise BadCall("The form has a form inside.", code=UNREADABLE)
        yield Part(part, str(part.name or "")[:64])
    raise BadCall(f"The form has more than {MOST} parts.", code=UNREADABLE)
