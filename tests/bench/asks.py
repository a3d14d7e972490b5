"""The same chat request in both dialects, almost equal in size."""

from __future__ import annotations

import json
from dataclasses import dataclass

from tests.bench.upstream import MODEL

MESSAGES = [
    {"role": "system", "content": "You are a patient teacher. Answer in plain words and in at most five sentences."},
    {"role": "user", "content": "What is a web server, and what is a client?"},
    {"role": "assistant", "content": "A server waits for requests and answers them; a client is whoever asks."},
    {"role": "user", "content": "And what does a reverse proxy do between the two, and why would I want one?"},
]


VARIED = "VARIED"
FIRST = 1_000_000_000
"""The lowest of the numbers that replace VARIED: all have the same number of digits."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A POST request.  If its body contains VARIED, this is replaced by a different number each time."""

    path: str
    body: str

    def numbered(self, number: int) -> bytes:
        """The request as bytes, with VARIED replaced; number: less than FIRST."""
        body = self.body.replace(VARIED, str(FIRST + number))
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return (head + body).encode()


def written(body: dict[str, object]) -> str:
    return json.dumps(body, separators=(",", ":")).replace(f'"{VARIED}"', VARIED)


def native(stream: bool = False, model: str = MODEL) -> Ask:
    """In Ollama's dialect, which the forwarder gets, too; with a different seed each time."""
    options = {"temperature": 0.7, "num_predict": 256, "seed": VARIED}
    return Ask("/api/chat", written({"model": model, "messages": MESSAGES, "stream": stream, "options": options}))


def openai(stream: bool = False, model: str = MODEL) -> Ask:
    """In OpenAI's dialect, with a different seed each time, so that it is never cached."""
    return Ask("/v1/chat/completions", written(fields(stream, model) | {"seed": VARIED}))


def repeated(stream: bool = False) -> Ask:
    """Always the same, so that it is cached after the first time."""
    return Ask("/v1/chat/completions", written(fields(stream, MODEL) | {"seed": FIRST}))


def fields(stream: bool, model: str) -> dict[str, object]:
    return {"model": model, "messages": MESSAGES, "stream": stream, "temperature": 0.7, "max_tokens": 256}
