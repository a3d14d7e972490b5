"""How a whole answer looks on the wire."""

from __future__ import annotations

import asyncio
import json
from email.utils import parsedate_to_datetime

import pytest
from aiohttp.test_utils import make_mocked_request

from proxy.edge.document import Document
from tests.conftest import ASK, Running, Start

BODY = json.dumps(ASK).encode()


Answered = tuple[str, dict[str, str], bytes]
"""The first line, the headers, the body."""


async def raw(run: Running, version: str, *lines: str, times: int = 1) -> list[Answered]:
    """The answers to `times` equal requests that are sent at once (pipelined)."""
    head = [f"POST /v1/chat/completions HTTP/{version}", "Host: 127.0.0.1", "Content-Type: application/json"]
    request = "\r\n".join([*head, f"Content-Length: {len(BODY)}", *lines, "", ""]).encode() + BODY
    reader, writer = await asyncio.open_connection("127.0.0.1", int(run.url.rpartition(":")[2]))
    writer.write(request * times)
    try:
        async with asyncio.timeout(30):
            return [await answered(reader) for _ in range(times)]
    finally:
        writer.close()


async def answered(reader: asyncio.StreamReader) -> Answered:
    first, *told = (await reader.readuntil(b"\r\n\r\n")).decode().removesuffix("\r\n\r\n").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in told)}
    assert len(headers) == len(told), "a header is sent twice"
    return first, headers, await reader.readexactly(int(headers["content-length"]))


@pytest.mark.parametrize(
    ("version", "lines", "connection"),
    [
        ("1.1", ["Connection: close"], "close"),
        ("1.0", [], None),
        ("1.0", ["Connection: keep-alive"], "keep-alive"),
        ("1.1", [], None),
    ],
)
async def test_the_connection_header_is_sent_only_where_it_differs_from_the_versions_default(
    start: Start, version: str, lines: list[str], connection: str | None
) -> None:
    async with start() as run:
        ((first, headers, body),) = await raw(run, version, *lines)
    assert first == f"HTTP/{version} 200 OK" and headers.get("connection") == connection
    assert json.loads(body)["object"] == "chat.completion"
    assert parsedate_to_datetime(headers["date"]).tzinfo is not None and headers["server"] == "gemmapy-proxy"


async def test_pipelined_requests_are_answered_in_order(start: Start) -> None:
    async with start() as run:
        answers = await raw(run, "1.1", times=5)
    assert len({json.loads(body)["id"] for _, _, body in answers}) == 5


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\0b"])
async def test_a_header_value_with_a_line_break_is_never_written(value: str) -> None:
    with pytest.raises(ValueError, match="more than one line"):
        Document(b"{}", {"x-gemmapy-note": value}).head(make_mocked_request("POST", "/"))
