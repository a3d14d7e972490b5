"""Ollama's answers -> Events."""

from __future__ import annotations

import orjson

from proxy.errors import UpstreamError
from proxy.types import JSON, Event, Finish, Text, Thinking, ToolCalled, Usage, Vectors
from proxy.wire import ollama_errors
from proxy.wire.ids import new_id
from proxy.wire.upstream_values import count, number, text


class Lines:
    """Splits a byte stream, which arrives in arbitrary pieces, into lines of at most `most` bytes."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are now complete.  Raises UpstreamError if one becomes longer than `most`."""
        lines = (self.rest + data if self.rest else data).split(b"\n")
        self.rest = lines.pop()
        if len(self.rest) > self.most or any(len(line) > self.most for line in lines):
            raise UpstreamError(f"Ollama sent a line of more than {self.most} bytes.", "server")
        return lines


class ChatReader:
    """Reads the lines of one streamed /api/chat answer, or the only document of a whole one."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.called = False
        self.done = False
        self.held: tuple[JSON, ...] = ()
        """Logprobs of tokens whose text Ollama has not sent yet: its parser holds back text until it has seen more."""

    def read(self, line: bytes) -> list[Event]:
        """The events of one line.  Raises UpstreamError, or the error that an error line contains."""
        try:
            data = orjson.loads(line)
            if "error" in data:
                raise self.unreadable(line)
            message = self.message_of(data)
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise self.unreadable(line) from None
        try:
            if len(message) == 2 and "role" in message and not (data["done"] or "logprobs" in data or self.held):
                words = text(message["content"])  # nearly every line of a stream: a role, a text, and nothing else
                return [Text(words)] if words else []
            events = self.said(data, message)
            if data["done"]:
                events += self.ended(data)
        except (KeyError, TypeError, AttributeError):
            raise self.unreadable(line) from None
        return events

    def message_of(self, data: dict[str, JSON]) -> dict[str, JSON]:
        message: dict[str, JSON] = data["message"]
        return message

    def said(self, data: dict[str, JSON], message: dict[str, JSON]) -> list[Event]:
        events: list[Event] = []
        if thought := message.get("thinking"):
            events.append(Thinking(text(thought)))
            self.held = ()  # they belong to the text that began the thinking
        # Ollama does not say which logprobs belong to thinking; those in a line with thinking are not the answer's.
        told = () if thought else tuple(map(logprob, data.get("logprobs") or ()))
        events += self.spoken(text(message.get("content") or ""), told, data["done"])
        events += [self.calling(call["function"]) for call in message.get("tool_calls") or ()]
        return events

    def spoken(self, words: str, told: tuple[JSON, ...], done: bool) -> list[Event]:
        """Text with the logprobs of its tokens, as OpenAI's clients expect; those without text are given at the end."""
        logprobs = self.held + told
        if not words and not done:
            self.held = logprobs
            return []
        self.held = ()
        return [Text(words, 0, logprobs)] if words or logprobs else []

    def calling(self, function: dict[str, JSON]) -> ToolCalled:
        """A tool call with an id of our own: for some models Ollama's ids are missing, or its indexes are all 0."""
        self.called = True
        arguments = orjson.dumps(function.get("arguments") or {}).decode()
        return ToolCalled(new_id("call_"), text(function["name"]), arguments)

    def ended(self, data: dict[str, JSON]) -> list[Event]:
        self.done = True
        usage = Usage(
            count(data.get("prompt_eval_count")),
            count(data.get("eval_count")),
            count(data.get("prompt_eval_cached_count")),
            count(data.get("load_duration")) or 0,
            count(data.get("prompt_eval_duration")) or 0,
            count(data.get("eval_duration")) or 0,
        )
        reason = "length" if data.get("done_reason") == "length" else "stop"
        return [usage, Finish("tool_calls" if self.called and reason == "stop" else reason)]

    def unreadable(self, line: bytes) -> Exception:
        try:
            data = orjson.loads(line)
        except orjson.JSONDecodeError:
            data = None
        if isinstance(data, dict) and data.get("error"):
            return ollama_errors.of_text(200, ollama_errors.unwrapped(data), self.model)
        return UpstreamError("Ollama sent a line that is not a valid answer.", "server")


def logprob(one: dict[str, JSON]) -> dict[str, JSON]:
    """A copy of a valid logprob.  Raises KeyError or TypeError if it is invalid."""
    for told in (one, *(one.get("top_logprobs") or ())):
        text(told["token"])
        number(told["logprob"])
    return {**one}


def vectors_of(document: bytes, wanted: int) -> tuple[Vectors, Usage]:
    """Vectors of an /api/embed document, and their usage.  Raises UpstreamError if invalid or not `wanted` many.

    Ollama has already scaled them to unit length, which is not checked.
    """
    import numpy as np

    try:
        data = orjson.loads(document)
        with np.errstate(over="ignore"):  # checked below
            values = np.asarray(data["embeddings"], dtype=np.float32)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        raise UpstreamError("Ollama sent embeddings that cannot be read.", "server") from None
    found = len(values) if values.ndim == 2 else 0
    if found != wanted:
        raise UpstreamError(f"Ollama sent {found} embeddings for {wanted} inputs.", "server")
    if not np.isfinite(values).all():
        raise UpstreamError("Ollama sent embeddings that are no numbers.", "server")
    return Vectors(values), Usage(
        count(data.get("prompt_eval_count")), 0, load_ns=count(data.get("load_duration")) or 0
    )
