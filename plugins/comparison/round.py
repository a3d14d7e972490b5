"""Sends the same question to several models, with limited concurrency."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from plugins.comparison.results import CallOutcome
from proxy.announcements import CallEnded
from proxy.errors import ProxyError, UpstreamError
from proxy.host import Host
from proxy.meter import metered
from proxy.streams import Answer
from proxy.types import Call, Caller, Event, Reply, Text, Thinking

log = logging.getLogger(__name__)
ROUTE: Final = "chat"
CONVERSATION: Final = "x-gemmapy-conversation"
NAME: Final = "asking a model of a comparison"
WAITING: Final = 256
"""Events buffered for a slow reader; beyond that, the models' streams wait."""


@dataclass(frozen=True, slots=True)
class AnswerPiece:
    """A piece of one answer, or of the thinking before it."""

    place: int
    text: str = ""
    thinking: str = ""


@dataclass(frozen=True, slots=True)
class AnswerEnd:
    place: int
    heard: CallOutcome


Step: TypeAlias = AnswerPiece | AnswerEnd


class CallEndCollector:
    """Collects the `CallEnded` events of the calls that are awaited."""

    def __init__(self, host: Host) -> None:
        self.awaited: dict[str, CallEnded | None] = {}
        host.on(CallEnded, self.ended)

    def ended(self, ended: CallEnded) -> None:
        # Additional calls by plugins may have the same id, but have another route.
        if ended.id in self.awaited and ended.route == ROUTE:
            self.awaited[ended.id] = ended


class Round:
    """Makes the calls of one comparison.  calls: one per model, each sent through its chain.  at_once: concurrency."""

    def __init__(self, host: Host, ends: CallEndCollector, calls: Sequence[Call], caller: Caller, at_once: int) -> None:
        self.host = host
        self.caller = caller
        self.ends = ends
        self.calls = calls
        self.at_once = min(at_once, len(calls))
        self.steps_made: asyncio.Queue[Step] = asyncio.Queue(WAITING)

    async def steps(self) -> AsyncGenerator[Step, None]:
        """The pieces of all answers as they arrive.  Closing the generator cancels all calls.  Raises Busy."""
        turns = iter(range(len(self.calls)))
        tasks: list[asyncio.Task[None]] = []
        try:
            tasks.extend(self.host.background.start(self.work(turns), NAME) for _ in range(self.at_once))
            left = len(self.calls)
            while left:
                step = await self.steps_made.get()
                left -= isinstance(step, AnswerEnd)
                yield step
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def work(self, turns: Iterator[int]) -> None:
        for place in turns:
            await self.steps_made.put(AnswerEnd(place, await self.heard(place, self.calls[place])))

    async def heard(self, place: int, call: Call) -> CallOutcome:
        """The outcome of one call, whether it succeeds or fails."""
        answer = Answer()
        error: ProxyError | None = None
        self.ends.awaited[call.id] = None
        try:
            async with asyncio.timeout_at(None if call.deadline is None else call.deadline.at):
                await self.read(place, call, answer)
        except TimeoutError:
            error = UpstreamError("The answer was not complete before its caller's own limit.", "timeout")
        except ProxyError as failed:
            error = failed
        except Exception:  # one call's unexpected error must not end the others
            log.exception("a call of a comparison failed")
            error = ProxyError("The server failed to answer.", code="internal_error")
        finally:
            ended = self.ends.awaited.pop(call.id)
        return CallOutcome(call, self.host.models.named(call.model), answer, ended, error)

    async def read(self, place: int, call: Call, answer: Answer) -> None:
        self.host.admit(call, self.caller)
        reply = await metered(call, self.host.send, self.host)
        try:
            check_own(self.host, call, reply)
            async for event in reply.events:
                answer.add(event)
                if (step := step_of(place, event)) is not None:
                    await self.steps_made.put(step)
        finally:
            await reply.aclose()


def check_own(host: Host, call: Call, reply: Reply) -> None:
    """Raises UpstreamError if a fallback model answered: its answer must not count for the requested one."""
    told, named = reply.facts.get("fallback"), host.models.named
    if told and named(reply.facts.get("model", "")) != named(call.model):
        raise UpstreamError(f"Another model answered in its place: {told}.", "server", code="fell_back")


def step_of(place: int, event: Event) -> Step | None:
    if not isinstance(event, Text | Thinking) or not event.text:
        return None
    return AnswerPiece(place, event.text) if isinstance(event, Text) else AnswerPiece(place, thinking=event.text)


def calls_of(asked: Call, id: str, models: Sequence[str], ids: Sequence[str]) -> list[Call]:
    """One call per model.  id: the comparison's, which becomes a tag of the calls.  ids: the calls' own.

    They always stream, so that the time to the first token is known.  They name no conversation, since every answer
    would be added to it.
    """
    tags = {**asked.tags, "comparison": id}
    headers = {name: value for name, value in asked.headers.items() if name != CONVERSATION}
    one = asked.but(stream=True, tags=tags, headers=headers)
    return [one.but(id=own, model=model) for model, own in zip(models, ids, strict=True)]
