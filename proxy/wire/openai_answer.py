"""Events -> OpenAI's chat completion, whole or in chunks.  Source: OpenAI's API reference, "Chat completions"."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

from proxy.streams import Answer, Choice
from proxy.types import JSON, Event, Finish, Sources, Text, Thinking, ToolCall, ToolCalled, Usage
from proxy.wire import sse
from proxy.wire.ids import new_id
from proxy.wire.openai_errors import SseStyle


@dataclass(slots=True)
class ChatStyle(SseStyle):
    """How to write the answer to one call.  model: the name in the request."""

    model: str
    include_usage: bool = False
    legacy_functions: bool = False
    id: str = field(default_factory=lambda: new_id("chatcmpl-"))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answer: Answer, fingerprint: str) -> bytes:
        choices = [self.choice(index, one) for index, one in sorted(answer.choices.items())]
        return orjson.dumps(
            {
                "id": self.id,
                "object": "chat.completion",
                "created": self.created,
                "model": self.model,
                "system_fingerprint": fingerprint,
                "choices": choices or [self.choice(0, Choice())],
                "usage": usage_of(answer.usage),
            }
        )

    def choice(self, index: int, choice: Choice) -> dict[str, JSON]:
        text, calls = choice.text, choice.tool_calls
        message: dict[str, JSON] = {
            "role": "assistant",
            "content": text or (None if calls else ""),
            "refusal": None,
        }
        if choice.sources is not None:
            message |= sources_of(choice.sources)
        if choice.thoughts:
            message["reasoning_content"] = choice.thinking
        if calls and self.legacy_functions:
            message["function_call"] = {"name": calls[0].name, "arguments": calls[0].arguments}
        elif calls:
            message["tool_calls"] = [tool_call(call) for call in calls]
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs_of(choice.logprobs) if choice.logprobs else None,
            "finish_reason": self.finish(choice.finish),
        }

    def finish(self, reason: str) -> str:
        return "function_call" if reason == "tool_calls" and self.legacy_functions else reason

    def chunks(self, fingerprint: str) -> Chunks:
        return Chunks(self, fingerprint)


def fingerprint(facts: Mapping[str, str]) -> str:
    """OpenAI's `system_fingerprint`: here the digest of the model's weights."""
    return f"fp_{facts.get('digest') or 'ollama'}"


def tool_call(call: ToolCall | ToolCalled) -> dict[str, JSON]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def sources_of(event: Sources) -> dict[str, JSON]:
    """`annotations` as OpenAI defines them, and our own `sources` with more details."""
    return {"annotations": event.annotations, "sources": event.passages}


def logprobs_of(logprobs: JSON) -> JSON:
    filled = [{**one, "top_logprobs": one.get("top_logprobs") or []} for one in logprobs]
    return {"content": filled, "refusal": None}


def usage_of(usage: Usage | None) -> JSON:
    """Usage in OpenAI's form, in which counts that the upstream did not report are 0."""
    prompt = usage.prompt_tokens or 0 if usage else 0
    completion = usage.completion_tokens or 0 if usage else 0
    told: dict[str, JSON] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if usage and usage.cached_tokens is not None:
        told["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if usage and usage.thinking_tokens is not None:
        told["completion_tokens_details"] = {"reasoning_tokens": usage.thinking_tokens}
    return told


class Chunks:
    """Writes the events of one answer as chunks.

    For speed, a chunk with text is one `dumps` of the text between two prepared halves.
    """

    def __init__(self, style: ChatStyle, fingerprint: str) -> None:
        self.style = style
        head = orjson.dumps(
            {
                "id": style.id,
                "object": "chat.completion.chunk",
                "created": style.created,
                "model": style.model,
                "system_fingerprint": fingerprint,
            }
        )
        self.head = b"data: " + head[:-1] + b',"choices":['
        self.tail = b',"usage":null}\n\n' if style.include_usage else b"}\n\n"
        self.before = self.head + b'{"index":0,"delta":{"content":'
        self.after = b'},"logprobs":null,"finish_reason":null}]' + self.tail
        self.begun: set[int] = set()
        self.calls: dict[int, int] = {}
        self.usage: Usage | None = None

    def write(self, event: Event) -> bytes:
        if type(event) is Text and not event.choice and not event.logprobs and 0 in self.begun:
            return self.before + orjson.dumps(event.text) + self.after
        return self.other(event)

    def other(self, event: Event) -> bytes:
        match event:
            case Usage():
                self.usage = event
                return b""
            case Text():
                delta: dict[str, JSON] = {"content": event.text}
                logprobs = logprobs_of(event.logprobs) if event.logprobs else None
                return self.opening(event.choice) + self.chunk(event.choice, delta, logprobs=logprobs)
            case Thinking():
                return self.opening(event.choice, None) + self.chunk(event.choice, {"reasoning_content": event.text})
            case ToolCalled():
                return self.opening(event.choice, None) + self.chunk(event.choice, self.called(event))
            case Sources():
                return self.opening(event.choice) + self.chunk(event.choice, sources_of(event))
            case Finish():
                finish = self.style.finish(event.reason)
                return self.opening(event.choice) + self.chunk(event.choice, {}, finish)
        return b""

    def opening(self, choice: int, content: str | None = "") -> bytes:
        """The first chunk of a choice, with its role; b"" if it was already sent.

        content: None if there is no text yet, as OpenAI does it: some clients begin a text at anything else.
        """
        if choice in self.begun:
            return b""
        self.begun.add(choice)
        return self.chunk(choice, {"role": "assistant", "content": content, "refusal": None})

    def called(self, event: ToolCalled) -> dict[str, JSON]:
        if self.style.legacy_functions:
            return {"function_call": {"name": event.name, "arguments": event.arguments}}
        index = self.calls.get(event.choice, 0)
        self.calls[event.choice] = index + 1
        return {"tool_calls": [{"index": index, **tool_call(event)}]}

    def chunk(self, choice: int, delta: JSON, finish: str | None = None, logprobs: JSON = None) -> bytes:
        written = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self.head + orjson.dumps(written) + b"]" + self.tail

    def end(self) -> bytes:
        if not self.style.include_usage:
            return sse.DONE
        return self.head + b'],"usage":' + orjson.dumps(usage_of(self.usage)) + b"}\n\n" + sse.DONE
