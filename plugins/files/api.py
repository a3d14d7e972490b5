"""OpenAI's endpoints for files.  Source: OpenAI's API reference, "Files"."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from aiohttp import web
from pydantic import Field

from plugins.files import shapes
from plugins.files.store import PIECE, File, Store, Wanted
from proxy.config import Strict
from proxy.errors import BadCall, Busy, TooLarge
from proxy.forms import checked
from proxy.host import Host, Part
from proxy.types import Route

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
DAY: Final = 86_400
BATCH: Final = 30 * DAY
"""Seconds for which a file for batches is kept by default."""
LONGEST: Final = 512
"""Maximum length of a file name, in characters."""
REST: Final = 1024 * 1024
"""Maximum bytes of a form besides its file."""


class Page(Strict):
    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    order: Literal["asc", "desc"] = "desc"
    purpose: Annotated[str, Field(max_length=64)] | None = None


class Said(Strict):
    """The form fields that describe the file."""

    purpose: Purpose
    anchor: Literal["created_at"] | None = Field(None, alias="expires_after[anchor]")
    seconds: Annotated[int, Field(ge=3600, le=30 * DAY)] | None = Field(None, alias="expires_after[seconds]")


@dataclass(slots=True)
class Upload:
    """A form that is being read.  id: of its file, once its row has been created."""

    id: str = ""
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Api:
    """tasks: writes in progress; they are completed even if the client disconnects."""

    store: Store
    host: Host
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def begin(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self.host.background.start(work, name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def routes(self) -> Iterable[Route]:
        yield Route("POST", "/v1/files", self.create, "user")
        yield Route("GET", "/v1/files", self.list, "user")
        yield Route("GET", "/v1/files/{id}", self.get, "user")
        yield Route("DELETE", "/v1/files/{id}", self.delete, "user")
        yield Route("GET", "/v1/files/{id}/content", self.content, "user")

    def caller(self, request: web.BaseRequest) -> str:
        return self.host.requests.caller(request).name

    async def create(self, request: web.BaseRequest) -> web.StreamResponse:
        """Store an uploaded file; a failed upload leaves nothing behind."""
        caller, upload = self.caller(request), Upload()
        if (request.content_length or 0) > self.store.bounds.file + REST:
            raise self.too_large()
        try:
            async for part in self.host.requests.parts(request):
                await self.take(caller, part, upload)
            file = await self.finish(caller, upload)
        except BaseException:
            if upload.id:
                self.begin(self.undo(upload.id), "dropping an upload")
            raise
        return shapes.answer(shapes.head(file))

    async def take(self, caller: str, part: Part, upload: Upload) -> None:
        if part.filename is None and part.name != "file":
            upload.fields[part.name] = await part.text()
            if part.name == "purpose":  # check it at once: the file may come after it, and need not be read then
                purpose_of(upload.fields)
            return
        if upload.id:
            raise BadCall("Send one file at a time.", param="file", code="invalid_value")
        upload.id = await self.store.begin(caller, name_of(part.filename))
        number, size = 0, 0
        async for piece in whole_pieces(part.pieces()):
            size += len(piece)
            if size > self.store.bounds.file:
                raise self.too_large()
            await asyncio.shield(self.begin(self.store.put(caller, upload.id, number, piece), "keeping a file"))
            number += 1

    def too_large(self) -> TooLarge:
        message = f"The file is larger than {self.store.bounds.file} bytes."
        return TooLarge(message, param="file", code="request_too_large")

    async def finish(self, caller: str, upload: Upload) -> File:
        if not upload.id:
            raise BadCall("Missing required parameter: 'file'.", param="file", code="missing_required_parameter")
        said = checked(Said, dict(upload.fields), strict=False)
        if (said.anchor is None) != (said.seconds is None):
            name = "anchor" if said.anchor is None else "seconds"
            message = f"Missing required parameter: 'expires_after[{name}]'."
            raise BadCall(message, param=f"expires_after[{name}]", code="missing_required_parameter")
        seconds = BATCH if said.seconds is None and said.purpose == "batch" else said.seconds
        return await self.store.finish(caller, upload.id, said.purpose, seconds)

    async def undo(self, id: str) -> None:
        with suppress(Busy):  # `tidy` deletes abandoned uploads later
            await self.store.drop(id)

    async def list(self, request: web.BaseRequest) -> web.StreamResponse:
        page = self.host.requests.query(request, Page)
        wanted = Wanted(page.after, page.limit, page.order, page.purpose)
        files, more = await self.store.page(self.caller(request), wanted)
        data = [shapes.head(one) for one in files]
        ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
        return shapes.answer({"object": "list", "data": data, **ends, "has_more": more})

    async def get(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        return shapes.answer(shapes.head(await self.store.one(self.caller(request), id)))

    async def delete(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        file = await self.store.one(self.caller(request), id)
        await asyncio.shield(self.begin(self.store.remove(file), "deleting a file"))
        return shapes.answer({"id": file.id, "object": "file", "deleted": True})

    async def content(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        """The bytes as a download: a browser must never render them as a page of this server's origin."""
        caller = self.caller(request)
        file = await self.store.one(caller, id)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(file.bytes),
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.name, safe='')}",
            "X-Content-Type-Options": "nosniff",
        }
        return await self.host.requests.streamed(request, self.store.pieces(caller, file.id), headers)


def name_of(given: str | None) -> str:
    """The name without what databases reject (NUL, lone surrogates), and shortened from its beginning."""
    name = (given or "").replace("\0", "").encode("utf-8", "replace").decode()
    return name[-LONGEST:] or "file"


def purpose_of(fields: dict[str, str]) -> None:
    checked(Said, {"purpose": fields["purpose"]}, strict=False)


async def whole_pieces(source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces of PIECE bytes each, the last one may be shorter."""
    waiting = bytearray()
    async for some in source:
        waiting += some
        while len(waiting) >= PIECE:
            yield bytes(waiting[:PIECE])
            del waiting[:PIECE]
    if waiting:
        yield bytes(waiting)
