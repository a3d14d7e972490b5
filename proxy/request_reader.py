"""Reading requests to plugins' own endpoints; the edge implements it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from aiohttp import web

from proxy.forms import Form
from proxy.types import Caller, Image
from proxy.wire.openai_attached import Attached


class Part(Protocol):
    """A part of a form: a file if `filename` is not None, else a field.  Read it only once, before the next part."""

    @property
    def name(self) -> str: ...

    @property
    def filename(self) -> str | None: ...

    def pieces(self) -> AsyncIterator[bytes]:
        """The content, as it arrives.  Raises BadCall or TooSlow."""

    async def text(self) -> str:
        """The content of a field.  Raises BadCall, TooSlow or TooLarge."""


class RequestReader(Protocol):
    """Reads requests to a plugin's own endpoints, and writes their answers."""

    def link(self, path: str) -> str:
        """The path of an endpoint of this server as clients see it, with the base path."""

    def caller(self, request: web.BaseRequest) -> Caller: ...

    async def form(self, request: web.BaseRequest, kind: type[Form]) -> Form:
        """The JSON body as a pydantic model; no body counts as `{}`.  Raises BadCall, which names the wrong field."""

    async def text(self, request: web.BaseRequest, kind: str) -> str:
        """The body as text.  kind: the end of its content type, such as `yaml`.  Raises BadCall or WrongType."""

    def parts(self, request: web.BaseRequest) -> AsyncIterator[Part]:
        """The parts of a `multipart/form-data` body of unlimited size.  Raises BadCall, WrongType or TooSlow."""

    async def pictures(self, wanted: Mapping[str, str], whole: str) -> Mapping[str, Image]:
        """Fetch the pictures behind links, by link.  Raises BadCall, also for hosts that the operator does not allow.

        wanted: by link, the name of its field.  whole: the name of the field that contains all links.
        """

    async def files(self, request: web.BaseRequest, several: Sequence[Attached]) -> None:
        """Replace references to the caller's files in a body by their content.  Raises BadCall or NotFound."""

    def headers(self, request: web.BaseRequest) -> Mapping[str, str]:
        """The headers of every answer to this request; an endpoint that streams must send them itself."""

    async def streamed(
        self, request: web.BaseRequest, pieces: AsyncIterator[bytes], headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Write an answer piece by piece.  An error before the first piece, which may be empty, is raised; a later one
        breaks the connection, and so does a client that reads nothing for a minute."""

    def query(self, request: web.BaseRequest, kind: type[Form]) -> Form:
        """The URL's query as a pydantic model; a field that is a tuple may occur several times.  Raises BadCall."""
