"""Starting, replaying and collecting event streams."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxy.types import (
    JSON,
    Event,
    Events,
    Finish,
    Reply,
    Searched,
    Sources,
    Text,
    Thinking,
    ToolCall,
    Usage,
    Vectors,
)


class SharedUsage(Usage, frozen=True, tag="Usage"):
    """Usage for a caller that shares an answer with others and now pays for it, as the one who was to pay has left."""


class Replay(AsyncGenerator[Event, None]):
    """A stream whose events are all available.  Unlike a plain generator, it can also be read without awaiting."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.rest = iter(events)

    async def asend(self, value: None) -> Event:
        for event in self.rest:
            return event
        raise StopAsyncIteration

    def left(self) -> Sequence[Event]:
        """All unread events; they stay unread."""
        events = list(self.rest)
        self.rest = iter(events)
        return events

    async def athrow(self, kind: Any, value: Any = None, trace: Any = None) -> Event:
        self.rest = iter(())
        raise kind if value is None else value

    async def aclose(self) -> None:
        self.rest = iter(())


def replay(events: Iterable[Event]) -> Events:
    return Replay(events)


def whole(events: Iterable[Event], facts: Mapping[str, str]) -> Reply:
    """A reply whose events are all available, so it need not be closed."""
    return Reply(Replay(events), facts)


async def begun(reply: Reply) -> Reply:
    """Wait for the first event, so that a failure to start is raised here and can be retried.

    Closes the reply if that fails.
    """
    try:
        first = await anext(reply.events, None)
    except BaseException:
        await reply.aclose()
        raise
    return reply.through(lambda rest: _chained(first, rest))


async def _chained(first: Event | None, rest: Events) -> Events:
    if first is not None:
        yield first
        async for event in rest:
            yield event


@dataclass(slots=True)
class Choice:
    """One choice of an answer; grows while it is collected."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[Mapping[str, JSON]] = field(default_factory=list)
    finish: str = "stop"
    sources: Sources | None = None
    searched: Searched | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def thinking(self) -> str:
        return "".join(self.thoughts)


@dataclass(slots=True)
class Answer:
    """The collected events of a Reply."""

    choices: dict[int, Choice] = field(default_factory=dict)
    usage: Usage | None = None
    vectors: Vectors | None = None

    def choice(self, index: int) -> Choice:
        found = self.choices.get(index)
        if found is None:
            found = self.choices[index] = Choice()
        return found

    def add(self, event: Event) -> None:
        if isinstance(event, Usage):
            self.usage = event
            return
        if isinstance(event, Vectors):
            self.vectors = event
            return
        choice = self.choice(event.choice)
        if isinstance(event, Text):
            choice.texts.append(event.text)
            choice.logprobs.extend(event.logprobs)
        elif isinstance(event, Finish):
            choice.finish = event.reason
        elif isinstance(event, Thinking):
            choice.thoughts.append(event.text)
        elif isinstance(event, Sources):
            choice.sources = event
        elif isinstance(event, Searched):
            choice.searched = event
        else:
            choice.tool_calls.append(ToolCall(event.id, event.name, event.arguments))


async def collect(reply: Reply) -> Answer:
    """Read a reply to its end and close it."""
    answer = Answer()
    try:
        if type(reply.events) is Replay:
            for event in reply.events.rest:
                answer.add(event)
            return answer
        async for event in reply.events:
            answer.add(event)
    finally:
        if reply.closers:
            await reply.aclose()
    return answer
