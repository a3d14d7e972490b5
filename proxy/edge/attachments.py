"""Replaces files in messages by their text or picture, using the features that store files and extract text."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from proxy.errors import BadCall, NotFound, TooLarge
from proxy.file_access import FileAccess, FileInfo, FileStore, TextExtractor
from proxy.types import Caller, Image
from proxy.wire.openai_attached import Attached
from proxy.wire.openai_messages import check_image
from proxy.wire.openai_turns import data_url


@dataclass(frozen=True, slots=True)
class Attachments:
    """most: maximum characters of all files of a request together, and maximum bytes of one sent inline; as many as a
    body may have.  picture: maximum bytes of one picture."""

    most: int
    picture: int
    file_access: FileAccess = field(default_factory=FileAccess)

    async def put(self, several: Sequence[Attached], caller: Caller) -> None:
        """Replace each file by its contents.  Raises BadCall or NotFound, which name the first that cannot be read."""
        texts = [one for one in several if one.picture is None]
        extractor = self.extractor(texts[0]) if texts else None
        kept, left = await self.kept(several, caller), self.most
        for one in several:
            name, pieces = self.opened(one, kept, caller)
            try:
                if extractor is None or one.picture is not None:
                    told = await self.seen(one, kept[one.id].bytes, pieces)
                else:
                    told = await extractor.text(name, pieces, left)
            except (BadCall, NotFound, TooLarge) as error:
                error.param = one.field
                raise
            left -= len(told)
            one.put(told)

    async def seen(self, one: Attached, size: int, pieces: AsyncIterator[bytes]) -> str:
        """A picture as a data: URL."""
        if size > self.picture:
            raise BadCall(f"Invalid '{one.field}': more than {self.picture} bytes.", code="image_too_large")
        found = b"".join([piece async for piece in pieces])
        check_image(found, one.field)
        return data_url(Image(base64.b64encode(found).decode()))

    def extractor(self, first: Attached) -> TextExtractor:
        if self.file_access.extractor is None:
            message = f"'{first.at}': files are read by the plugin 'documents', which this server does not have."
            raise BadCall(message, param=first.at, code="plugin_missing")
        return self.file_access.extractor

    def store(self, first: Attached) -> FileStore:
        if self.file_access.store is None:
            message = f"'{first.field}': files are kept by the plugin 'files', which this server does not have."
            raise BadCall(message, param=first.field, code="plugin_missing")
        return self.file_access.store

    async def kept(self, several: Sequence[Attached], caller: Caller) -> Mapping[str, FileInfo]:
        named = [one for one in several if one.id]
        if not named:
            return {}
        found = await self.store(named[0]).find(caller.name, [one.id for one in named])
        for one in named:
            if one.id not in found:
                message = f"No file of yours has the id '{one.id[:100]}'."
                raise NotFound(message, param=one.field, code="file_not_found")
        return found

    def opened(self, one: Attached, kept: Mapping[str, FileInfo], caller: Caller) -> tuple[str, AsyncIterator[bytes]]:
        """A file's name and its bytes, whether stored or sent inline."""
        if one.id:
            return kept[one.id].name, self.store(one).pieces(caller.name, one.id)
        return one.called(), self.sent(one)

    async def sent(self, one: Attached) -> AsyncIterator[bytes]:
        yield await asyncio.to_thread(one.bytes, self.most)
