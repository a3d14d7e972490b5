"""What a request to a plugin's own endpoint says: who asks, and its body as a checked form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, get_args, get_origin

from aiohttp import web
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from proxy.config import Requests
from proxy.edge.attachments import Attachments
from proxy.edge.body import parsed, read_body, read_text
from proxy.edge.exchange import exchange_of
from proxy.edge.images import Images
from proxy.edge.parts import Part, parts_of
from proxy.edge.pouring import poured
from proxy.errors import BadCall, WrongType
from proxy.types import JSON, Caller, Image
from proxy.wire.openai_attached import Attached

Form = TypeVar("Form", bound=BaseModel)
LARGE: Final = 1024 * 1024
"""Bytes of a body, such as a whole book, that are checked beside the event loop."""


@dataclass(frozen=True, slots=True)
class Counter:
    """bounds: what is taken of a body.  images: fetches those that it links to.  attachments: reads files in it.
    base: with which all paths begin.
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
        """Raises BadCall naming the first field that is wrong."""
        text = await read_text(request, self.bounds) if request.body_exists else b"{}"
        if len(text) < LARGE:
            return self.read(text, kind)
        return await asyncio.to_thread(self.read, text, kind)

    def read(self, text: bytes, kind: type[Form]) -> Form:
        body = parsed(text, self.bounds)
        try:
            return kind.model_validate(body, strict=True)
        except ValidationError as error:
            raise told(error, body) from None

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

    async def poured(
        self, request: web.BaseRequest, pieces: AsyncIterator[bytes], headers: Mapping[str, str]
    ) -> web.StreamResponse:
        return await poured(request, pieces, headers)

    def query(self, request: web.BaseRequest, kind: type[Form]) -> Form:
        """Lists are `name=a&name=b`, or `name[]=a&name[]=b` as some clients write them."""
        given: dict[str, Any] = {}
        for name, value in request.query.items():
            if "\0" in value:  # which not every database takes
                raise BadCall(
                    f"Invalid '{name[:200]}': it can be no such thing.", param=name[:200], code="invalid_value"
                )
        for written in dict.fromkeys(request.query):
            name = written.removesuffix("[]")
            field = kind.model_fields.get(name)
            many = field is not None and is_list(field.annotation)
            given[name] = [*given.get(name, ()), *request.query.getall(written)] if many else request.query[written]
        try:
            return kind.model_validate(given)
        except ValidationError as error:
            raise told(error, given) from None


def is_list(annotation: object) -> bool:
    return get_origin(annotation) is tuple or any(get_origin(one) is tuple for one in get_args(annotation))


def told(error: ValidationError, body: JSON) -> BadCall:
    """Of several faults the first; of a field that may be several things, what each of them would be."""
    faults = error.errors()
    first = faults[0]
    place = place_of(first, body)
    name = path_of(place)
    if first["type"] == "extra_forbidden":
        return BadCall(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
    if first["type"] == "missing":
        return BadCall(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    alike = [first] if place == first["loc"] else [one for one in faults if place_of(one, body) == place]
    said = " or ".join(one["msg"].removeprefix("Value error, ") for one in alike)
    said = said.replace(" or Input should be ", " or ")
    message = f"Invalid '{name}': {said}." if name else f"Invalid request: {said}."
    return BadCall(message, param=name or None, code="invalid_value")


def place_of(fault: ErrorDetails, body: JSON) -> tuple[str | int, ...]:
    """Where a fault is in the body, without the kinds of a union, which pydantic puts behind the field's name."""
    place = fault["loc"][:1]
    there: Any = body.get(place[0]) if isinstance(body, dict) and place else None
    for step in fault["loc"][1:]:
        if isinstance(step, int) if isinstance(there, list) else isinstance(there, dict) and step in there:
            there = there[step]
        elif fault["type"] != "missing" or step != fault["loc"][-1]:
            continue
        place += (step,)
    return place


def path_of(place: Sequence[str | int]) -> str:
    """As OpenAI writes it: `messages[0].content`."""
    text = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in place)
    return text.removeprefix(".")[:200]
