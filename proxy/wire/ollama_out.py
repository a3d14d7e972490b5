"""Events -> Ollama's own answers, whole or as lines, for clients that speak its native API."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal

import orjson

from proxy.errors import ProxyError
from proxy.streams import Answer, Choice
from proxy.types import JSON, Event, Finish, Text, Thinking, ToolCall, ToolCalled, Usage
from proxy.wire.openai_errors import clean

METRICS: Final = (
    ("load_duration", "load_ns"),
    ("prompt_eval_count", "prompt_tokens"),
    ("prompt_eval_cached_count", "cached_tokens"),
    ("prompt_eval_duration", "prompt_ns"),
    ("eval_count", "completion_tokens"),
    ("eval_duration", "eval_ns"),
)


def error_body(error: ProxyError) -> bytes:
    """Ollama's errors are one string."""
    return orjson.dumps({"error": clean(str(error))})


def now() -> str:
    """RFC 3339 in UTC, as Ollama writes it."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def metrics(usage: Usage | None, started: int) -> dict[str, JSON]:
    """Durations in ns; what is zero or unknown is left out, as Ollama does."""
    told: dict[str, JSON] = {"total_duration": time.perf_counter_ns() - started}
    if usage is not None:
        told |= {name: given for name, attribute in METRICS if (given := getattr(usage, attribute))}
    return told


@dataclass(slots=True)
class NativeStyle:
    """How one call wants its answer written.  model: the name as asked."""

    model: str
    kind: Literal["chat", "generate"] = "chat"
    started: int = field(default_factory=time.perf_counter_ns)

    media_type = "application/x-ndjson"

    def comment(self, text: str) -> bytes:
        """Lines of JSON have no place for one."""
        return b""

    def failed(self, error: ProxyError) -> bytes:
        return error_body(error) + b"\n"

    def line(self, said: Mapping[str, JSON], done: bool, more: Mapping[str, JSON]) -> bytes:
        document: dict[str, JSON] = {"model": self.model, "created_at": now()}
        if self.kind == "chat":
            document["message"] = {"role": "assistant", "content": "", **said}
        else:
            document |= {"response": "", **{("response" if name == "content" else name): said[name] for name in said}}
        return orjson.dumps({**document, "done": done, **more})

    def last(self, said: Mapping[str, JSON], reason: str, usage: Usage | None, more: Mapping[str, JSON]) -> bytes:
        reason = "stop" if reason == "tool_calls" else reason
        return self.line(said, True, {**more, "done_reason": reason, **metrics(usage, self.started)})

    def whole(self, answer: Answer, fingerprint: str) -> bytes:
        choice = answer.choices.get(0, Choice())
        said: dict[str, JSON] = {"content": choice.text}
        if choice.thoughts:
            said["thinking"] = choice.thinking
        if choice.tool_calls:
            said["tool_calls"] = [tool_call(call, index) for index, call in enumerate(choice.tool_calls)]
        return self.last(said, choice.finish, answer.usage, {"logprobs": choice.logprobs} if choice.logprobs else {})

    def chunks(self, fingerprint: str) -> NativeLines:
        return NativeLines(self)


def tool_call(call: ToolCall | ToolCalled, index: int) -> JSON:
    arguments = orjson.Fragment(call.arguments)
    return {"id": call.id, "function": {"index": index, "name": call.name, "arguments": arguments}}


class NativeLines:
    """Writes the events of one answer as lines; the last one carries the figures."""

    def __init__(self, style: NativeStyle) -> None:
        self.style = style
        self.usage: Usage | None = None
        self.reason = "stop"
        self.calls = 0

    def write(self, event: Event) -> bytes:
        if isinstance(event, Text):
            more = {"logprobs": event.logprobs} if event.logprobs else {}
            return self.style.line({"content": event.text}, False, more) + b"\n"
        if isinstance(event, Thinking):
            return self.style.line({"content": "", "thinking": event.text}, False, {}) + b"\n"
        if isinstance(event, ToolCalled):
            self.calls += 1
            said = {"content": "", "tool_calls": [tool_call(event, self.calls - 1)]}
            return self.style.line(said, False, {}) + b"\n"
        if isinstance(event, Usage):
            self.usage = event
        elif isinstance(event, Finish):
            self.reason = event.reason
        return b""

    def end(self) -> bytes:
        return self.style.last({"content": ""}, self.reason, self.usage, {}) + b"\n"


def write_embed(model: str, answer: Answer, started: int, legacy: bool) -> bytes:
    rows = [] if answer.vectors is None else list(answer.vectors.values)
    if legacy:
        told: dict[str, JSON] = {"embedding": rows[0] if rows else []}
    else:
        told = {"model": model, "embeddings": rows, **metrics(answer.usage, started)}
    return orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY)
