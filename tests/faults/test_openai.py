"""The same for a server with OpenAI's API: what the client sees when it fails, and what is left behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import pytest

from tests.conftest import HI, Late, Start
from tests.faults.test_ollama import (
    CONFIG,
    Way,
    ask,
    check_broken_off,
    check_error,
    check_nothing_left,
    check_recovered,
)
from tests.whole.asking import Stream, dead_url

ASK: Final = {"model": "m", "messages": HI}
WAYS: Final = {
    "chat": Way("/v1/chat/completions", ASK, "/chat/completions"),
    "chat stream": Way("/v1/chat/completions", {**ASK, "stream": True}, "/chat/completions", True),
    "native stream": Way("/api/chat", ASK, "/chat/completions", True),
    "completion": Way("/v1/completions", {"model": "m", "prompt": "hi"}, "/completions"),
    "embedding": Way("/v1/embeddings", {"model": "m", "input": "hi"}, "/embeddings"),
}
BEFORE: Final = {
    "500": (502, "upstream_server"),
    "503": (503, "upstream_overloaded"),
    "429": (503, "upstream_overloaded"),
    "too long": (400, "context_length_exceeded"),
    "reset": (502, "upstream_cut"),
    "end": (502, "upstream_cut"),
    "garbage": (502, "upstream_server"),
    "stall": (504, "upstream_timeout"),
    "a long line": (502, "upstream_server"),
}
MIDWAY: Final = ("an error", "reset", "end", "garbage", "stall", "a long line")
TOO_LONG: Final = json.dumps({"error": {"message": "This model's maximum context length is 8 tokens."}}).encode()


@dataclass
class Server:
    """Fails once with this fault, before its answer or in the middle of it, and then answers correctly."""

    fault: str = ""
    midway: bool = False
    url: str = ""
    stalls: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if "/models" in head.split("\r\n", 1)[0]:
            return await self.end(writer, 200, json.dumps({"data": [{"id": "m"}]}).encode())
        length = int(next(one for one in head.split("\r\n") if one.lower().startswith("content-length")).split(":")[1])
        asked = json.loads(await reader.readexactly(length))
        fault, self.fault = self.fault, ""
        try:
            await self.answer(reader, writer, asked, fault)
        finally:
            writer.close()

    async def answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: dict[str, object], fault: str
    ) -> None:
        if fault and not self.midway:
            return await self.fail(reader, writer, fault)
        if "input" in asked:
            row = {"index": 0, "embedding": [0.6, 0.8]}
            return await self.end(writer, 200, json.dumps({"data": [row], "usage": {"prompt_tokens": 1}}).encode())
        if not asked.get("stream"):
            choice = {"index": 0, "message": {"content": "a b c"}, "text": "a b c", "finish_reason": "stop"}
            return await self.end(writer, 200, json.dumps({"choices": [choice]}).encode())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for word in "abc":
            writer.write(chunk(delta={"content": word}))
            await writer.drain()
            await asyncio.sleep(0.02)
        if fault:
            return await self.fail(reader, writer, fault)
        writer.write(chunk(delta={}, finish_reason="stop") + b"data: [DONE]\n\n")

    async def fail(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: str) -> None:
        if fault.isdigit():
            await self.end(writer, int(fault), b'{"error": {"message": "no"}}')
        elif fault == "too long":
            await self.end(writer, 400, TOO_LONG)
        elif fault == "reset":
            writer.transport.abort()
        elif fault == "stall":
            self.stalls.set()
            await reader.read()  # until the client disconnects
        elif fault in ("garbage", "a long line", "an error"):
            told = {"garbage": b"\x00\xff{", "a long line": b"x" * 300_000, "an error": TOO_LONG[:-1] + b"}"}[fault]
            writer.write((b"" if self.midway else b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n") + b"data: " + told)
            writer.write(b"\n\n")

    async def end(self, writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
        writer.write(b"HTTP/1.1 %d X\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
        writer.close()


def chunk(**choice: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "finish_reason": None, **choice}]}).encode() + b"\n\n"


@asynccontextmanager
async def server(fault: str, midway: bool = False, port: int = 0) -> AsyncIterator[Server]:
    made = Server(fault, midway)
    listening = await asyncio.start_server(made.serve, "127.0.0.1", port)
    made.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    async with listening:
        yield made


def config(url: str) -> str:
    return f"{CONFIG}upstreams: {{local: {{openai: '{url}', slots: 2, max_answer_bytes: 100000}}}}\n"


@pytest.mark.parametrize("fault", BEFORE)
@pytest.mark.parametrize("way", WAYS)
async def test_a_fault_before_the_first_event(start: Start, late: Late, way: str, fault: str) -> None:
    asked, (status, code) = WAYS[way], BEFORE[fault]
    async with server(fault) as far, start(config(far.url)) as run:
        asking = asyncio.ensure_future(ask(run, asked))
        if fault == "stall":
            await far.stalls.wait()
            await late(run)
        found, text = await asking
        assert found == status, text
        check_error(asked, text, code)
        await check_nothing_left(run)
        await check_recovered(run, asked)


@pytest.mark.parametrize("fault", MIDWAY)
@pytest.mark.parametrize("way", [name for name, way in WAYS.items() if way.stream])
async def test_a_fault_in_the_middle_of_a_stream(start: Start, late: Late, way: str, fault: str) -> None:
    asked = WAYS[way]
    async with server(fault, midway=True) as far, start(config(far.url)) as run:
        found, text = await ask(run, asked, late(run) if fault == "stall" else None)
        assert found == 200
        check_broken_off(asked, text)
        assert asked.native or Stream(text).text() == "abc"
        await check_nothing_left(run)
        await check_recovered(run, asked)


@pytest.mark.parametrize("way", WAYS)
async def test_a_refused_connection_and_recovery_once_the_host_is_up(start: Start, way: str) -> None:
    url, asked = dead_url(), WAYS[way]
    async with start(config(f"{url}/v1")) as run:
        found, text = await ask(run, asked)
        assert found == 502 and "refused" in text
        await check_nothing_left(run)
        async with server("", port=int(url.rpartition(":")[2])):
            await check_recovered(run, asked)
