"""Small functions on event streams."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

import orjson

from proxy.types import (
    JSON,
    Event,
    Events,
    Finish,
    Reply,
    Text,
    Thinking,
    ToolCall,
    ToolCalled,
    Usage,
    Vectors,
)

KINDS = {kind.__name__: kind for kind in (Text, Thinking, ToolCalled, Finish, Usage, Vectors)}


async def replay(events: Iterable[Event]) -> Events:
    for event in events:
        yield event


async def begun(reply: Reply) -> Reply:
    """Wait for the first event, so that a failure to start is raised here and can be retried.

    Closes the reply when there is no first event to give.
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
    """One whole answer; grows while it is collected."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[Mapping[str, JSON]] = field(default_factory=list)
    finish: str = "stop"

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def thinking(self) -> str:
        return "".join(self.thoughts)


@dataclass(slots=True)
class Answer:
    """All that a Reply said, for those who need it whole."""

    choices: dict[int, Choice] = field(default_factory=dict)
    usage: Usage | None = None
    vectors: Vectors | None = None

    def choice(self, index: int) -> Choice:
        return self.choices.setdefault(index, Choice())

    def add(self, event: Event) -> None:
        match event:
            case Text():
                choice = self.choice(event.choice)
                choice.texts.append(event.text)
                choice.logprobs.extend(event.logprobs)
            case Thinking():
                self.choice(event.choice).thoughts.append(event.text)
            case ToolCalled():
                call = ToolCall(event.id, event.name, event.arguments)
                self.choice(event.choice).tool_calls.append(call)
            case Finish():
                self.choice(event.choice).finish = event.reason
            case Usage():
                self.usage = event
            case Vectors():
                self.vectors = event


async def collect(reply: Reply) -> Answer:
    """Read a reply to its end and close it."""
    answer = Answer()
    async with aclosing(reply):
        async for event in reply.events:
            answer.add(event)
    return answer


def dump(events: Iterable[Event]) -> bytes:
    """JSON of an event list; `load` gives the same events back."""
    return orjson.dumps([[type(event).__name__, event] for event in events], option=orjson.OPT_SERIALIZE_NUMPY)


def load(dumped: bytes) -> list[Event]:
    """Raises ValueError, KeyError or TypeError if `dumped` is not what `dump` wrote."""
    return [_event(kind, fields) for kind, fields in orjson.loads(dumped)]


def _event(kind: str, fields: dict[str, JSON]) -> Event:
    if kind == "Text":
        return Text(fields["text"], fields["choice"], tuple(fields["logprobs"]))
    if kind == "Vectors":
        import numpy as np

        return Vectors(np.asarray(fields["values"], dtype=np.float32))
    return KINDS[kind](**fields)
