"""HTTP with one Ollama server: nothing of a client's own request goes through but what is put here."""

from __future__ import annotations

import asyncio
import io
import os
from contextlib import suppress
from functools import lru_cache

import aiohttp
import orjson
from aiohttp.payload import BytesIOPayload, BytesPayload, Payload
from yarl import URL

from proxy.errors import UpstreamError
from proxy.types import JSON
from proxy.wire import ollama_errors

CONNECT = 10.0
"""Seconds that a server may take to accept a connection, unless a call says otherwise."""
SMALL = aiohttp.ClientTimeout(total=10, sock_connect=5)
BROKEN = (aiohttp.ClientError, OSError)
"""What a connection fails with; TimeoutError is an OSError."""


@lru_cache(64)
def patience(connect: float | None) -> aiohttp.ClientTimeout:
    """Only connecting is limited here; how long an answer may take is the `timeouts` plugin's."""
    return aiohttp.ClientTimeout(total=None, sock_connect=connect or CONNECT)


def payload_of(body: bytes) -> Payload:
    """A small body is one write; a large one, with images, goes in pieces."""
    if len(body) < 2**20:
        return BytesPayload(body, content_type="application/json")
    return BytesIOPayload(io.BytesIO(body), content_type="application/json")


class OllamaHttp:
    def __init__(self, http: aiohttp.ClientSession, url: str, most: int) -> None:
        self.http = http
        self.url = url
        self.urls = {
            path: URL(url + path) for path in ("/api/chat", "/api/generate", "/api/embed")
        }  # reading a URL costs 10 µs
        self.most = most
        """Bytes that one answer may have."""

    async def post(self, path: str, body: JSON, model: str, connect: float | None = None) -> aiohttp.ClientResponse:
        """An answer with status 200, not yet read; whoever gets it closes it.

        Raises the error that Ollama's answer means, or UpstreamError.
        """
        try:
            response = await self.http.post(
                self.urls.get(path) or self.url + path,
                data=payload_of(orjson.dumps(body)),
                timeout=patience(connect),
                allow_redirects=False,
            )
        except BROKEN as error:
            raise self.blamed(error) from error
        if response.status == 200:
            return response
        try:
            raise ollama_errors.error_of(response.status, await self.read(response), model)
        finally:
            response.close()

    async def read(self, response: aiohttp.ClientResponse) -> bytes:
        """The whole body, bounded.  Raises UpstreamError."""
        try:
            if response.content_length is not None and response.content_length <= self.most:
                return await response.read()
            parts, size = [], 0
            async for part in response.content.iter_any():
                parts.append(part)
                size += len(part)
                if size > self.most:
                    raise UpstreamError(f"Ollama sent an answer of more than {self.most} bytes.", "server")
        except BROKEN as error:
            raise self.blamed(error) from error
        return b"".join(parts)

    async def part(self, response: aiohttp.ClientResponse) -> bytes:
        """What has arrived of the body, or b"" at its end."""
        try:
            return await response.content.readany()
        except BROKEN as error:
            raise self.blamed(error) from error

    async def finish(self, response: aiohttp.ClientResponse) -> None:
        """Read the end of a body of which nothing more is wanted, so that its connection can be used again."""
        with suppress(*BROKEN):
            async with asyncio.timeout(1):
                while await response.content.readany():
                    pass

    async def ask(self, path: str, body: JSON = None, model: str = "") -> bytes:
        """One small document; a GET where there is no body."""
        if body is not None:
            response = await self.post(path, body, model)
        else:
            try:
                response = await self.http.get(self.url + path, timeout=SMALL, allow_redirects=False)
            except BROKEN as error:
                raise self.blamed(error) from error
        try:
            document = await self.read(response)
        finally:
            response.close()
        if response.status != 200:
            raise ollama_errors.error_of(response.status, document, model)
        return document

    def blamed(self, error: BaseException) -> UpstreamError:
        """What went wrong with a connection, and with whom."""
        if isinstance(error, TimeoutError):
            return UpstreamError(f"{self.url} did not answer in time.", "timeout")
        if isinstance(error, aiohttp.ClientConnectorError):
            why = os.strerror(error.errno).lower() if error.errno else "its name is not known"
            return UpstreamError(f"{self.url} cannot be reached: {why}.", "connect")
        return UpstreamError(f"{self.url} broke off the connection.", "cut")
