"""Events -> OpenAI's response, whole or as a stream.

Source: OpenAI's API reference, "Responses" and "Streaming events".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import orjson

from proxy.asks import Spelling, unchanged
from proxy.errors import ProxyError, UpstreamError
from proxy.streams import Answer
from proxy.types import JSON, Event, Finish, Moment, Searched, Sources, Text, Thinking, ToolCalled, Usage
from proxy.wire import openai_file_search as file_search
from proxy.wire.openai_errors import SseStyle, clean
from proxy.wire.openai_items import Item, placed
from proxy.wire.openai_namespaces import parted
from proxy.wire.openai_response_parts import Frames, Speech, Thought, called

RATE: Final = 429

NOTHING: Final = Text("")
"""The first event of a background response, so that its stream begins before the generation does."""
CANCELLED: Final = "response_cancelled"
"""The error code of a response that its owner has cancelled."""


@dataclass(slots=True)
class ResponseStyle(SseStyle):
    """How to write one response.

    head: the response before it has any content.
    complete: gives the time at which it was complete.
    deferred: it is generated in the background, so the client gets it with the status `queued`.
    spelled: translates the name of an internal field into the request's.
    """

    head: Mapping[str, JSON]
    complete: Moment = field(default_factory=Moment)
    deferred: bool = False
    spelled: Spelling = unchanged
    written: Response | None = None

    def whole(self, answer: Answer, fingerprint: str) -> bytes:
        if self.deferred:
            return orjson.dumps({**self.head, "status": "queued"})
        response = self.chunks(fingerprint)
        response.take(answer)
        return orjson.dumps(response.document())

    def chunks(self, fingerprint: str) -> Response:
        self.written = Response(self.head, self.complete)
        return self.written

    def failed(self, error: ProxyError) -> bytes:
        error.renamed(self.spelled(error.param))
        return (self.written or self.chunks("")).failed(error)


class Response:
    """Writes the events of one answer, and holds the response so far.

    Deterministic: the same head, time and events give the same bytes.  Ids of items derive from the response's id.
    """

    def __init__(self, head: Mapping[str, JSON], complete: Moment) -> None:
        self.head = head
        self.complete = complete
        self.summed = bool((head.get("reasoning") or {}).get("summary"))
        self.later = bool(head.get("background"))
        self.parted = parted(head.get("tools") or ())
        self.running = False
        self.frames = Frames()
        self.output: dict[int, Item] = {}
        """Items that are complete, by index."""
        self.items = 0
        self.speech: Speech | None = None
        self.thought: Thought | None = None
        self.finish = ""
        self.usage: Usage | None = None

    # --- events ---

    def write(self, event: Event) -> bytes:
        if type(event) is Text and self.speech is not None and self.thought is None:
            return self.speech.say(event)
        return self.opening(not self.later or event != NOTHING) + self.other(event)

    def hear(self, event: Event) -> None:
        """The same as `write` but without its output, to store a response: most events then need no JSON."""
        if type(event) is Text and not event.logprobs and self.speech is not None and self.thought is None:
            self.speech.texts.append(event.text)
        elif type(event) is Thinking and self.thought is not None and not event.choice:
            self.thought.texts.append(event.text)
        else:
            self.write(event)

    def other(self, event: Event) -> bytes:
        match event:
            case Text(choice=0):
                return self.say(event)
            case Thinking(choice=0):
                return self.think(event.text)
            case ToolCalled(choice=0):
                return self.thought_out() + self.call(event)
            case Finish(choice=0):
                self.finish = event.reason
                return self.closing()
            case Sources(choice=0):
                return self.cite(event)
            case Searched(choice=0):
                return self.searched(event)
            case Usage():
                self.usage = event
        return b""

    def take(self, answer: Answer) -> None:
        """Write a whole answer."""
        self.gather(answer)
        self.write(Finish(answer.choice(0).finish))

    def gather(self, answer: Answer) -> None:
        """Write a whole answer without its end."""
        choice = answer.choice(0)
        events: list[Event] = [] if choice.searched is None else [choice.searched]
        events += [Thinking(choice.thinking)] if choice.thinking else []
        events += [Text(choice.text, logprobs=tuple(choice.logprobs))] if choice.text else []
        events += [ToolCalled(one.id, one.name, one.arguments) for one in choice.tool_calls]
        events += [] if choice.sources is None else [choice.sources]
        for event in events:
            self.write(event)
        self.usage = answer.usage

    def end(self) -> bytes:
        told = self.opening() + self.closing()
        document = self.document()
        return told + self.frames.event(f"response.{document['status']}", response=document)

    def failed(self, error: ProxyError) -> bytes:
        """The error as an event of its own and in the response, because clients look for one or the other."""
        opening = self.opening(not self.later)
        code, message = error.code or error.kind, clean(str(error))
        told = self.frames.event("error", code=code, message=message, param=error.param)
        return opening + told + self.frames.event("response.failed", response=self.failure(error))

    # --- the response so far ---

    def document(self, status: str = "") -> dict[str, JSON]:
        """The response so far.  status: if it is not that of a response that has ended normally."""
        full = self.finish == "length"
        told: dict[str, JSON] = {"status": status or ("incomplete" if full else "completed"), "output": self.so_far()}
        if not status and full:
            told["incomplete_details"] = {"reason": "max_output_tokens"}
        elif not status:
            told["completed_at"] = self.complete()
        return {**self.head, **told, "usage": usage_of(self.usage)}

    def failure(self, error: ProxyError) -> dict[str, JSON]:
        if error.code == CANCELLED:
            return self.document("cancelled")
        code = failing(error.status)
        return {**self.document("failed"), "error": {"code": code, "message": clean(str(error))}}

    def so_far(self) -> list[Item]:
        found = dict(self.output)
        for one in (self.speech, self.thought):
            if one is not None:
                found[one.index] = one.item("incomplete")
        return [found[index] for index in sorted(found)]

    # --- its parts ---

    def opening(self, running: bool = True) -> bytes:
        """The first events, if they are not sent yet.  running: whether it is being generated, and not only queued."""
        event, told = self.frames.event, b""
        if not self.frames.count:
            head = {**self.head, "status": "queued" if self.later else "in_progress"}
            told = event("response.created", response=head)
            told += event("response.queued", response=head) if self.later else b""
        if running and not self.running:
            self.running = True
            told += event("response.in_progress", response={**self.head, "status": "in_progress"})
        return told

    def place(self, prefix: str) -> tuple[str, int]:
        """The id and index of a new item."""
        index, self.items = self.items, self.items + 1
        return placed(str(self.head["id"]), prefix, index), index

    def say(self, event: Text) -> bytes:
        told = self.thought_out()
        if self.speech is None:
            if not event.text:
                return told
            told += self.speak()
        return told if self.speech is None else told + self.speech.say(event)

    def speak(self) -> bytes:
        self.speech = Speech(self.frames, *self.place("msg_"))
        return self.speech.begin()

    def think(self, text: str) -> bytes:
        told = b""
        if self.thought is None:
            self.thought = Thought(self.frames, *self.place("rs_"), self.summed)
            told = self.thought.begin()
        return told + self.thought.delta(text)

    def call(self, event: ToolCalled) -> bytes:
        id, index = self.place("fc_")
        self.output[index], told = called(self.frames, id, index, event, self.parted)
        return told

    def searched(self, event: Searched) -> bytes:
        id, index = self.place("fs_")
        self.output[index], told = file_search.called(self.frames, id, index, event)
        return told

    def cite(self, event: Sources) -> bytes:
        speech = self.speech
        if speech is None:
            return b""
        return b"".join(map(speech.annotate, file_search.cited(event.annotations)))

    def thought_out(self, status: str = "completed") -> bytes:
        """End the current reasoning, if there is any."""
        thought, self.thought = self.thought, None
        if thought is None:
            return b""
        self.output[thought.index] = thought.item(status)
        return thought.end(status)

    def closing(self) -> bytes:
        """End all open items.  A completed answer without any output gets an empty message."""
        status = "incomplete" if self.finish == "length" else "completed"
        told = self.thought_out(status)
        if status == "completed" and self.speech is None and not self.spoke:
            told += self.speak()
        speech, self.speech = self.speech, None
        if speech is not None:
            self.output[speech.index] = speech.item(status)
            told += speech.end(status)
        return told

    @property
    def spoke(self) -> bool:
        return any(one["type"] not in ("reasoning", file_search.CALL) for one in self.output.values())


def failing(status: int) -> str:
    """OpenAI's error code of a failed response, of which only a few exist, most of them about pictures."""
    if status == RATE:
        return "rate_limit_exceeded"
    return "invalid_prompt" if 400 <= status < 500 else "server_error"


def usage_of(usage: Usage | None) -> JSON:
    """Usage in the form of responses; counts that the upstream did not report are 0."""
    if usage is None:
        return None
    asked, said = usage.prompt_tokens or 0, usage.completion_tokens or 0
    return {
        "input_tokens": asked,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens or 0, "cache_write_tokens": 0},
        "output_tokens": said,
        "output_tokens_details": {"reasoning_tokens": usage.thinking_tokens or 0},
        "total_tokens": asked + said,
    }


def cut() -> UpstreamError:
    """The error of a response whose server stopped before it was complete."""
    return UpstreamError("The server stopped before the response was complete.", "cut")
