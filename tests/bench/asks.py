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


VARIED = "VARIED"
FIRST = 1_000_000_000
"""Of the numbers that take its place, so that they are all of one length."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One POST."""

    path: str
    body: str
    varied: bool = False
    """Whether no two are equal: `VARIED` in the body stands for another number each time."""

    @property
    def request(self) -> bytes:
        return self.numbered(0)

    def numbered(self, number: int) -> bytes:
        body = self.body.replace(VARIED, str(FIRST + number)) if self.varied else self.body
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return (head + body).encode()


def written(body: dict[str, object]) -> str:
    return json.dumps(body, separators=(",", ":"))


def native(stream: bool = False, model: str = MODEL) -> Ask:
    """What the forwarder is sent."""
    options = {"temperature": 0.7, "num_predict": 256}
    return Ask("/api/chat", written({"model": model, "messages": MESSAGES, "stream": stream, "options": options}))


def varied(stream: bool = False) -> Ask:
    """What the proxy is sent, with another seed each time."""
    plain = openai(stream)
    return Ask(plain.path, plain.body[:-1] + f',"seed":{VARIED}}}', varied=True)


def openai(stream: bool = False, model: str = MODEL) -> Ask:
    """What the proxy is sent."""
    asked = {"model": model, "messages": MESSAGES, "stream": stream, "temperature": 0.7, "max_tokens": 256}
    return Ask("/v1/chat/completions", written(asked))
