"""Events -> answers of Ollama's native API, whole or as lines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from typing import Final, Literal

import orjson

from proxy.errors import ProxyError
from proxy.streams import Answer, Choice
from proxy.types import JSON, Event, Finish, Sources, Text, Thinking, ToolCall, ToolCalled, Usage
from proxy.wire.openai_errors import clean

LISTED: Final = "GET /v1/models lists"
TAGGED: Final = "GET /api/tags lists"
"""What replaces `LISTED` in an error message to a client of Ollama's API."""
MILLI: Final = 0.001
METRICS: Final = (
    ("load_duration", attrgetter("load_ns")),
    ("prompt_eval_count", attrgetter("prompt_tokens")),
    ("prompt_eval_cached_count", attrgetter("cached_tokens")),
    ("prompt_eval_duration", attrgetter("prompt_ns")),
    ("eval_count", attrgetter("completion_tokens")),
    ("eval_duration", attrgetter("eval_ns")),
)


def error_body(error: ProxyError) -> bytes:
    """An error in Ollama's form, one string, which refers to Ollama's endpoints instead of OpenAI's."""
    return orjson.dumps({"error": clean(str(error)).replace(LISTED, TAGGED)})


def now() -> str:
    """The time in UTC by RFC 3339, as Ollama writes it."""
    micros = time.time_ns() // 1000
    return f"{_second(micros // 1_000_000)}.{micros % 1_000_000:06}Z"


@lru_cache(2)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def metrics(usage: Usage | None, started: int) -> dict[str, JSON]:
    """Token counts, and durations in ns.  Zero and unknown ones are omitted, as by Ollama."""
    told: dict[str, JSON] = {"total_duration": time.perf_counter_ns() - started}
    if usage is not None:
        for name, read in METRICS:
            if given := read(usage):
                told[name] = given
    return told


@dataclass(slots=True)
class NativeStyle:
    """How to write the answer to one call.  model: the name in the request."""

    model: str
    kind: Literal["chat", "generate"] = "chat"
    started: int = field(default_factory=time.perf_counter_ns)

    media_type = "application/x-ndjson"

    def comment(self, text: str) -> bytes:
        """None: lines of JSON cannot contain a comment."""
        return b""

    def failed(self, error: ProxyError) -> bytes:
        return error_body(error) + b"\n"

    def line(self, said: Mapping[str, JSON], done: bool, more: Mapping[str, JSON]) -> bytes:
        document: dict[str, JSON] = {"model": self.model, "created_at": now()}
        if self.kind == "chat":
            document["message"] = {"role": "assistant", **said}
        else:
            document |= {("response" if name == "content" else name): said[name] for name in said}
        document["done"] = done
        document.update(more)
        return orjson.dumps(document)

    def last(self, said: Mapping[str, JSON], reason: str, usage: Usage | None, more: Mapping[str, JSON]) -> bytes:
        told = metrics(usage, self.started)
        told["done_reason"] = "stop" if reason == "tool_calls" else reason
        told.update(more)
        return self.line(said, True, told)

    def whole(self, answer: Answer, fingerprint: str) -> bytes:
        choice = answer.choices.get(0, Choice())
        said: dict[str, JSON] = {"content": choice.text}
        if choice.thoughts:
            said["thinking"] = choice.thinking
        if choice.tool_calls:
            said["tool_calls"] = [tool_call(call, index) for index, call in enumerate(choice.tool_calls)]
        if choice.sources is not None:
            said["sources"] = choice.sources.passages
        return self.last(said, choice.finish, answer.usage, {"logprobs": choice.logprobs} if choice.logprobs else {})

    def chunks(self, fingerprint: str) -> NativeLines:
        return NativeLines(self)


def tool_call(call: ToolCall | ToolCalled, index: int) -> JSON:
    arguments = orjson.Fragment(call.arguments)
    return {"id": call.id, "function": {"index": index, "name": call.name, "arguments": arguments}}


class NativeLines:
    """Writes the events of one answer as lines; the last one has the token counts and durations."""

    def __init__(self, style: NativeStyle) -> None:
        self.style = style
        self.usage: Usage | None = None
        self.reason = "stop"
        self.calls = 0
        self.sources: dict[str, JSON] = {}
        # For speed, a line with text is one `dumps` of the text between prepared parts.
        self.head = orjson.dumps({"model": style.model})[:-1] + b',"created_at":"'
        self.stamped = 0.0
        self.before = b""
        self.between = b'","message":{"role":"assistant","content":' if style.kind == "chat" else b'","response":'
        self.after = (b"}" if style.kind == "chat" else b"") + b',"done":false}\n'

    def write(self, event: Event) -> bytes:
        if type(event) is Text and not event.logprobs:
            if (moment := time.time()) - self.stamped >= MILLI:  # tokens within a millisecond share a timestamp
                self.stamped, self.before = moment, self.head + now().encode() + self.between
            return self.before + orjson.dumps(event.text) + self.after
        return self.other(event)

    def other(self, event: Event) -> bytes:
        if isinstance(event, Text):
            more = {"logprobs": event.logprobs} if event.logprobs else {}
            return self.style.line({"content": event.text}, False, more) + b"\n"
        if isinstance(event, Thinking):
            return self.style.line({"content": "", "thinking": event.text}, False, {}) + b"\n"
        if isinstance(event, ToolCalled):
            self.calls += 1
            said = {"content": "", "tool_calls": [tool_call(event, self.calls - 1)]}
            return self.style.line(said, False, {}) + b"\n"
        if isinstance(event, Sources):
            self.sources = {"sources": event.passages}
        elif isinstance(event, Usage):
            self.usage = event
        elif isinstance(event, Finish):
            self.reason = event.reason
        return b""

    def end(self) -> bytes:
        return self.style.last({"content": "", **self.sources}, self.reason, self.usage, {}) + b"\n"


def write_embed(model: str, answer: Answer, started: int, legacy: bool) -> bytes:
    """The answer of /api/embed, with zeros too: unlike in chats, clients expect these fields to be present."""
    rows = [] if answer.vectors is None else list(answer.vectors.values)
    if legacy:
        told: dict[str, JSON] = {"embedding": rows[0] if rows else []}
    else:
        usage = answer.usage or Usage(None, None)
        told = {"model": model, "embeddings": rows, "total_duration": time.perf_counter_ns() - started}
        told["load_duration"] = usage.load_ns
        if usage.prompt_tokens is not None:
            told["prompt_eval_count"] = usage.prompt_tokens
    return orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY)
