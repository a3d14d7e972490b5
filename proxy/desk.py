"""What a request to an endpoint of a plugin's own says, as the edge reads it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from aiohttp import web

from proxy.forms import Form
from proxy.types import Caller, Image
from proxy.wire.openai_attached import Attached


class Part(Protocol):
    """Of a form: a field, or a file where `filename` is not None.  It is read once, before the next part."""

    @property
    def name(self) -> str: ...

    @property
    def filename(self) -> str | None: ...

    def pieces(self) -> AsyncIterator[bytes]:
        """As they arrive.  Raises BadCall or TooSlow."""

    async def text(self) -> str:
        """Of a field.  Raises also TooLarge."""


class Desk(Protocol):
    """What the edge tells of a request to a plugin's own endpoint."""

    def link(self, path: str) -> str:
        """The path of an endpoint of this server as its clients reach it."""

    def caller(self, request: web.BaseRequest) -> Caller: ...

    async def form(self, request: web.BaseRequest, kind: type[Form]) -> Form:
        """The JSON body as a model; none at all is an empty one.  Raises BadCall naming a field."""

    async def text(self, request: web.BaseRequest, kind: str) -> str:
        """The body as it is.  kind: the end of its content type, such as `yaml`.  Raises BadCall or WrongType."""

    def parts(self, request: web.BaseRequest) -> AsyncIterator[Part]:
        """Of a `multipart/form-data` body, whose size is not bounded.  Raises BadCall, WrongType or TooSlow."""

    async def pictures(self, wanted: Mapping[str, str], whole: str) -> Mapping[str, Image]:
        """What a body links to, by its links, as far as the operator lets it be fetched.  Raises BadCall.

        wanted: by link the name of the field that it came in.  whole: of the field that all came in.
        """

    async def files(self, request: web.BaseRequest, several: Sequence[Attached]) -> None:
        """Puts what these files of the caller's say where a body names them.  Raises BadCall or NotFound."""

    def headers(self, request: web.BaseRequest) -> Mapping[str, str]:
        """What every answer to this request carries; an endpoint that streams sends it by itself."""

    async def poured(
        self, request: web.BaseRequest, pieces: AsyncIterator[bytes], headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """An answer that is written piece by piece.  What fails before the first one, which may be empty, is raised;
        what fails later breaks the connection, as does a client that takes nothing for a minute."""

    def query(self, request: web.BaseRequest, kind: type[Form]) -> Form:
        """What the URL asks for, as a model; a field that is a tuple may be named several times.  Raises BadCall."""
