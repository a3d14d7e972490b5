"""Reads requests to plugins' own endpoints: the caller, and bodies and queries as checked forms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args, get_origin

from aiohttp import web

from proxy.config import Requests
from proxy.edge.attachments import Attachments
from proxy.edge.body import parsed, read_body, read_text
from proxy.edge.exchange import exchange_of
from proxy.edge.images import Images
from proxy.edge.parts import Part, parts_of
from proxy.edge.streamed import streamed
from proxy.errors import BadCall, WrongType
from proxy.forms import Form, checked
from proxy.types import Caller, Image
from proxy.wire.openai_attached import Attached

LARGE: Final = 1024 * 1024
"""Bytes from which on a body, such as a whole book, is checked in a thread and not in the event loop."""


@dataclass(frozen=True, slots=True)
class HttpRequestReader:
    """bounds: limits for bodies.  images: fetches linked images.  attachments: reads files in a body.
    base: the path prefix of all routes.
    """

    bounds: Requests
    images: Images
    attachments: Attachments
    base: str = ""

    def link(self, path: str) -> str:
        return f"{self.base}{path}"

    def caller(self, request: web.BaseRequest) -> Caller:
        return exchange_of(request).caller

    def headers(self, request: web.BaseRequest) -> Mapping[str, str]:
        return exchange_of(request).headers

    async def form(self, request: web.BaseRequest, kind: type[Form]) -> Form:
        """Raises BadCall, which names the first wrong field."""
        text = await read_text(request, self.bounds) if request.body_exists else b"{}"
        if len(text) < LARGE:
            return self.read(text, kind)
        return await asyncio.to_thread(self.read, text, kind)

    def read(self, text: bytes, kind: type[Form]) -> Form:
        return checked(kind, parsed(text, self.bounds))

    async def text(self, request: web.BaseRequest, kind: str) -> str:
        if not request.content_type.endswith(kind):
            given = request.content_type[:100]
            message = f"Unsupported content type '{given}': send 'Content-Type: application/{kind}'."
            raise WrongType(message, code="unsupported_media_type")
        try:
            return (await read_body(request, self.bounds.body_timeout)).decode()
        except UnicodeDecodeError:
            raise BadCall("The body is not UTF-8.", code="invalid_encoding") from None

    def parts(self, request: web.BaseRequest) -> AsyncIterator[Part]:
        return parts_of(request)

    async def pictures(self, wanted: Mapping[str, str], whole: str) -> Mapping[str, Image]:
        return await self.images.got(wanted, whole) if wanted else {}

    async def files(self, request: web.BaseRequest, several: Sequence[Attached]) -> None:
        if several:
            await self.attachments.put(several, self.caller(request))

    async def streamed(
        self, request: web.BaseRequest, pieces: AsyncIterator[bytes], headers: Mapping[str, str]
    ) -> web.StreamResponse:
        return await streamed(request, pieces, headers)

    def query(self, request: web.BaseRequest, kind: type[Form]) -> Form:
        """The query as a checked form.  A list is `name=a&name=b`, or `name[]=a&name[]=b` as some clients write it."""
        given: dict[str, Any] = {}
        for name, value in request.query.items():
            if "\0" in value:  # PostgreSQL does not accept it
                raise BadCall(
                    f"Invalid '{name[:200]}': it contains a NUL character.", param=name[:200], code="invalid_value"
                )
        for written in dict.fromkeys(request.query):
            name = written.removesuffix("[]")
            field = kind.model_fields.get(name)
            many = field is not None and is_list(field.annotation)
            given[name] = [*given.get(name, ()), *request.query.getall(written)] if many else request.query[written]
        return checked(kind, given, strict=False)


def is_list(annotation: object) -> bool:
    return get_origin(annotation) is tuple or any(get_origin(one) is tuple for one in get_args(annotation))
