"""The same question in both dialects, a few bytes apart in size."""

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


@dataclass(frozen=True, slots=True)
class Ask:
    """One POST."""

    path: str
    body: str

    @property
    def request(self) -> bytes:
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(self.body)}\r\n\r\n"
        )
        return (head + self.body).encode()


def written(body: dict[str, object]) -> str:
    return json.dumps(body, separators=(",", ":"))


def native(stream: bool = False, model: str = MODEL) -> Ask:
    """What the forwarder is sent."""
    options = {"temperature": 0.7, "num_predict": 256}
    return Ask("/api/chat", written({"model": model, "messages": MESSAGES, "stream": stream, "options": options}))


def openai(stream: bool = False, model: str = MODEL) -> Ask:
    """What the proxy is sent."""
    asked = {"model": model, "messages": MESSAGES, "stream": stream, "temperature": 0.7, "max_tokens": 256}
    return Ask("/v1/chat/completions", written(asked))
