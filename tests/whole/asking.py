"""Requests that the tests of the whole server send, and readers of the answers."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from proxy.upstreams.demo import Said, Simulator
from tests.conftest import ASK, Running
from tests.servers import free_port

Json = dict[str, Any]

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
GIF = b"GIF89a\x01\x00\x01\x00\x00\x00\x00;"


def data_url(picture: bytes = PNG, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(picture).decode()}"


def picture(url: str, text: str = "What is this?") -> list[Json]:
    """The messages of a question about one image."""
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": parts}]


def user(text: str) -> list[Json]:
    return [{"role": "user", "content": text}]


def function(name: str, properties: Json | None = None, **more: Any) -> Json:
    """A tool; every property is required."""
    given = {"city": {"type": "string"}} if properties is None else properties
    parameters = {"type": "object", "properties": given, "required": list(given), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def schema(properties: Json, **more: Any) -> Json:
    """A `response_format` of an object with these properties, all of them required."""
    shape = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "shape", "schema": shape, **more}}


async def settled(run: Running) -> None:
    """Wait until every answer given so far is in the cache's store, or its write has failed."""
    state = run.server.services.state
    async with asyncio.timeout(30):
        while state["cache flights"]:  # noqa: ASYNC110  (there is no event to wait for)
            await asyncio.sleep(0.002)
        await state["cache outbox"].written()


async def until_shared(run: Running, count: int) -> None:
    """Wait until one generation in flight has this many readers."""
    flights = run.server.services.state["cache flights"]
    async with asyncio.timeout(30):
        while count not in [len(one.readers) for one in flights.values()]:  # noqa: ASYNC110  (no event)
            await asyncio.sleep(0.002)


async def error_of(response: aiohttp.ClientResponse, status: int) -> Json:
    """OpenAI's error object from a response that must have this status and a request ID."""
    document = await response.json()
    assert response.status == status, document
    assert response.content_type == "application/json"
    assert response.headers["x-request-id"]
    return shaped(document)


def shaped(document: Json) -> Json:
    assert set(document) == {"error"}
    error: Json = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and error["type"]
    return error


async def whole(response: aiohttp.ClientResponse) -> Json:
    """The JSON document of a successful response."""
    document: Json = await response.json()
    assert response.status == 200, document
    return document


def said(document: Json, choice: int = 0) -> Json:
    message: Json = document["choices"][choice]["message"]
    return message


class Stream:
    """An event stream that was read to its end."""

    def __init__(self, text: str) -> None:
        assert text.endswith("\n\n") or not text
        blocks = text.split("\n\n")[:-1]
        self.comments = [block for block in blocks if block.startswith(":")]
        self.data = [block.removeprefix("data: ") for block in blocks if block.startswith("data: ")]
        assert len(self.comments) + len(self.data) == len(blocks)
        self.done = self.data[-1:] == ["[DONE]"]
        """Whether it ended with `[DONE]`."""
        parsed = [json.loads(one) for one in self.data if one != "[DONE]"]
        self.errors = [shaped(one) for one in parsed if "error" in one]
        self.chunks = [one for one in parsed if "error" not in one]

    def text(self, choice: int = 0) -> str:
        return "".join(delta.get("content") or "" for delta in self.deltas(choice))

    def deltas(self, choice: int = 0) -> list[Json]:
        return [one["delta"] for chunk in self.chunks for one in chunk["choices"] if one["index"] == choice]

    def finishes(self) -> list[str]:
        return [one["finish_reason"] for chunk in self.chunks for one in chunk["choices"] if one["finish_reason"]]

    @property
    def broken(self) -> Json:
        """The only error of a stream that broke off, which must be its last event."""
        assert not self.done and "[DONE]" not in self.data, "a broken stream must not send [DONE]"
        assert len(self.errors) == 1 and "error" in json.loads(self.data[-1]), self.data
        return self.errors[0]


async def streamed(response: aiohttp.ClientResponse) -> Stream:
    assert response.status == 200, await response.text()
    return Stream((await response.read()).decode())


def asked(ollama: Simulator, path: str = "/api/chat") -> list[Json]:
    """The bodies of the requests that Ollama received at this path, except those that only load a model."""
    return [one.body for one in ollama.seen if one.path == path and (one.body.get("messages") or one.body.get("input"))]


def loading(ollama: Simulator, path: str = "/api/chat") -> list[Json]:
    """The bodies of the requests that only load a model."""
    bodies = [one.body for one in ollama.seen if one.path == path]
    return [body for body in bodies if not body.get("messages") and not body.get("input")]


def dead_url() -> str:
    """The URL of a port on which nothing listens."""
    return f"http://127.0.0.1:{free_port()}"


# --- clients that do not read ------------------------------------------------------------------------

FLOOD = Said(pieces=("\x1f" * 10_000,) * 500)
"""30 MB on the wire, as each character is escaped to six bytes: more than the buffers of two sockets hold."""
ESCAPED = rb"\u001f"


@asynccontextmanager
async def slow_client(run: Running) -> AsyncIterator[asyncio.StreamReader]:
    """A client that has requested a stream; it reads only when the test reads from the reader given."""
    host, _, port = run.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1000)
    words = json.dumps({**ASK, "stream": True})
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(words)}\r\n\r\n{words}".encode()
    )
    try:
        yield reader
    finally:
        writer.transport.abort()
