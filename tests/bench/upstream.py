"""An Ollama that answers at once: `python -m tests.bench.upstream PORT [MODELS]`, on eight loopback addresses.

It sends prepared bytes from a bare asyncio protocol, so it can share the load generator's core without being the
bottleneck.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import cast

import uvloop

MODEL = "llama3.2:3b"
SHORT = "short:latest"
"""Streams five tokens."""
PACED = "paced:latest"
"""Streams PACE tokens a second for SECONDS; each token contains the time at which it was sent."""
IDLE = "idle:latest"
"""Streams one token, and then nothing more."""
HOSTS = tuple(f"127.0.0.{number}" for number in range(1, 9))
TOKENS = 200
PACE = 20
SECONDS = 10

STAMP = '"created_at":"2026-02-03T10:11:12.123456789Z"'
METRICS = (
    '"done":true,"done_reason":"stop","total_duration":1234567890,"load_duration":23456789,'
    '"prompt_eval_count":61,"prompt_eval_duration":98765432,"eval_count":60,"eval_duration":1012345678'
)
WORDS = (
    "A reverse proxy stands between clients and one or more servers. It takes each request, decides where it "
    "should go, passes it on, and hands the answer back, so that clients need to know one address only. On its way "
    "it can check who is asking, limit how often, keep answers that it gave before, and try again when a server fails."
)


def line(model: str, word: str) -> str:
    said = json.dumps({"role": "assistant", "content": word}, separators=(",", ":"))
    return f'{{"model":"{model}",{STAMP},"message":{said},"done":false}}\n'


def last(model: str, words: str) -> str:
    said = json.dumps({"role": "assistant", "content": words}, separators=(",", ":"))
    return f'{{"model":"{model}",{STAMP},"message":{said},{METRICS}}}'


def whole(body: str) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()


def chunk(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM_END = chunk(last(MODEL, "") + "\n") + b"0\r\n\r\n"


def streamed(model: str, tokens: int) -> bytes:
    """In Ollama's format, one chunk per line, but all lines at once."""
    words = (WORDS + " ").split(" ")
    lines = (chunk(line(model, words[index % len(words)] + " ")) for index in range(tokens))
    return STREAM_HEAD + b"".join(lines) + STREAM_END


def described(model: str) -> str:
    details = (
        '{"parent_model":"","format":"gguf","family":"llama","families":["llama"],"parameter_size":"3.2B",'
        '"quantization_level":"Q4_K_M","context_length":131072}'
    )
    return (
        f'{{"name":"{model}","model":"{model}","modified_at":"2026-01-02T03:04:05Z","size":2019393189,'
        f'"digest":"{"a80c4f17acd5" * 5}1234","details":{details},"capabilities":["completion","tools"],'
        '"expires_at":"2099-01-01T00:00:00Z","size_vram":2019393189,"context_length":4096}'
    )


def listed(more: int) -> bytes:
    """The list of its models, with `more` models that are never used."""
    names = (MODEL, SHORT, PACED, IDLE, *(f"other-{number}:latest" for number in range(more)))
    return whole(f'{{"models":[{",".join(map(described, names))}]}}')


MODELS = listed(0)
GETS = {b"/api/tags": MODELS, b"/api/ps": MODELS, b"/api/version": whole('{"version":"0.33.0"}')}
WHOLE = whole(last(MODEL, WORDS))
STREAMS = {MODEL.encode(): streamed(MODEL, TOKENS), SHORT.encode(): streamed(SHORT, 5)}


class Ollama(asyncio.Protocol):
    """One connection, with one request at a time."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.rest = b""
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:
        data = self.rest + data if self.rest else data
        self.rest = b""
        head, found, body = data.partition(b"\r\n\r\n")
        if not found or len(body) < length_of(head):
            self.rest = data
            return
        if data.startswith(b"POST"):
            self.chat(body)
        else:
            self.transport.write(GETS[head.split(b" ", 2)[1]])

    def chat(self, body: bytes) -> None:
        """Recognises both spellings of the field: clients differ in the space after the colon."""
        if b'"stream":false' in body or b'"stream": false' in body:
            self.transport.write(WHOLE)
        elif PACED.encode() in body:
            self.transport.write(STREAM_HEAD)
            self.tell(asyncio.get_running_loop().time(), 0)
        elif IDLE.encode() in body:
            self.transport.write(STREAM_HEAD + chunk(line(IDLE, "at first")))
        else:
            self.transport.write(next((answer for model, answer in STREAMS.items() if model in body), WHOLE))

    def tell(self, begun: float, told: int) -> None:
        """Send the next token of a paced stream; a late one does not delay those after it."""
        if told == PACE * SECONDS:
            self.transport.write(STREAM_END)
            return
        self.transport.write(chunk(line(PACED, f"at {time.monotonic_ns()}")))
        due = begun + (told + 1) / PACE
        self.timer = asyncio.get_running_loop().call_at(due, self.tell, begun, told + 1)

    def connection_lost(self, error: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()


def length_of(head: bytes) -> int:
    at = head.lower().find(b"\r\ncontent-length:")
    return 0 if at < 0 else int(head[at + 17 :].split(b"\r\n", 1)[0])


async def main(port: int, more: int) -> None:
    GETS[b"/api/tags"] = listed(more)
    server = await asyncio.get_running_loop().create_server(Ollama, HOSTS, port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
