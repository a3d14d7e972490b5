"""Several answers to one question, by as many concurrent calls, because Ollama gives only one answer each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from msgspec.structs import replace

from proxy.observer import HeldBackAnswer, Observer
from proxy.rejected import grown
from proxy.streams import Answer, Choice
from proxy.types import JSON, Ask, Call, Chat, Complete, Event, Events, Finish, Handler, Reply, Text, Usage, Vectors

Start: TypeAlias = Callable[[], Awaitable[Reply]]
MOST_BUFFERED = 256
"""Events buffered for a slow reader before the calls are paused."""


def wants_several(ask: Ask) -> bool:
    """Whether a call asks for more than one answer."""
    if isinstance(ask, Chat):
        return ask.n > 1
    return isinstance(ask, Complete) and (ask.best_of > 1 or ask.n > 1 or len(ask.prompts) > 1)


async def fan_out(call: Call, handler: Handler) -> Reply:
    """One call for each answer, merged into one reply.  If any of them fails, at any time, the whole call fails."""
    ask = call.ask
    singles = list(single_completions(ask) if isinstance(ask, Complete) else single_chats(ask))
    group = max(ask.n, ask.best_of) if isinstance(ask, Complete) else len(singles)
    merged = MergedReplies([partial(handler, call.but(ask=one)) for one in singles], group, call.observer)
    facts = await merged.started()
    reply = Reply.of(merged.events(), **facts).on_close(merged.aclose)
    if isinstance(ask, Complete) and ask.best_of > ask.n:
        return reply.through(BestOf(ask).select)
    return reply


def single_chats(ask: Ask) -> Iterable[Chat]:
    """`n` chats with `seed`, `seed + 1`, …; without a seed the model chooses random ones."""
    if isinstance(ask, Chat):
        for index in range(ask.n):
            yield replace(ask, n=1, options=seeded(ask.options, index))


def single_completions(ask: Complete) -> Iterable[Complete]:
    count = max(ask.n, ask.best_of)
    logprobs = ask.logprobs if ask.best_of <= ask.n else ask.logprobs or 0
    for prompt in ask.prompts:
        for index in range(count):
            options = seeded(ask.options, index)
            yield replace(ask, prompts=(prompt,), n=1, best_of=1, options=options, logprobs=logprobs)


def seeded(options: Mapping[str, JSON], index: int) -> Mapping[str, JSON]:
    seed = options.get("seed")
    return options if seed is None or not index else {**options, "seed": seed + index}


class BestOf:
    """Keeps the most likely candidates of each prompt, as OpenAI's `best_of` does."""

    def __init__(self, ask: Complete) -> None:
        self.ask = ask

    async def select(self, source: Events) -> Events:
        answer = Answer()
        async for event in source:
            answer.add(event)
        ranked = self.ranked(answer)
        for index, choice in enumerate(ranked):
            logprobs = tuple(choice.logprobs) if self.ask.logprobs is not None else ()
            yield Text(choice.text, index, logprobs)
            yield Finish(choice.finish, index)
        if answer.usage is not None:
            yield answer.usage

    def ranked(self, answer: Answer) -> list[Choice]:
        found: list[Choice] = []
        for prompt in range(len(self.ask.prompts)):
            start = prompt * self.ask.best_of
            candidates = [answer.choice(index) for index in range(start, start + self.ask.best_of)]
            found += sorted(candidates, key=mean_logprob, reverse=True)[: self.ask.n]
        return found


def mean_logprob(choice: Choice) -> float:
    """The mean log probability of the tokens; minus infinity if they have none."""
    logprobs = [one["logprob"] for one in choice.logprobs]
    return sum(logprobs) / len(logprobs) if logprobs else float("-inf")


class MergedReplies:
    """Several replies as one: events in the order of their arrival, one Usage at the end.

    Each is read as soon as it begins.  An unread one would occupy a slot of its host that the others may be waiting
    for.
    """

    def __init__(self, calls: Sequence[Start], group: int, observer: Observer) -> None:
        """group: number of consecutive replies with the same prompt.  observer: is told what is read before all have
        begun, since it is not delivered if one of them fails to begin."""
        self.group = group
        self.observer = observer
        self.held: list[HeldBackAnswer] = []
        self.usages: dict[int, Usage] = {}
        self.buffer: deque[Event | BaseException | None] = deque()
        self.arrived, self.room = asyncio.Event(), asyncio.Event()
        self.begun: list[asyncio.Future[Mapping[str, str]]] = []
        self.all_begun = False
        loop = asyncio.get_running_loop()
        for _ in calls:
            self.begun.append(loop.create_future())
        self.tasks = [loop.create_task(self.pump(index, one)) for index, one in enumerate(calls)]

    async def started(self) -> Mapping[str, str]:
        """The facts of the first reply, once all have begun.  If one fails, cancels the others and raises its error."""
        try:
            facts = await asyncio.gather(*self.begun)
        except BaseException:
            await self.aclose()
            raise
        self.all_begun = True
        for made in self.held:
            made.given = True
        return facts[0]

    async def events(self) -> Events:
        running = len(self.tasks)
        while running:
            while not self.buffer:
                self.arrived.clear()
                await self.arrived.wait()
            event = self.buffer.popleft()
            self.room.set()
            if event is None:
                running -= 1
            elif isinstance(event, BaseException):
                raise event
            else:
                yield event
        if self.usages:
            yield self.total()

    async def pump(self, index: int, start: Start) -> None:
        begun = self.begun[index]
        try:
            reply = await start()
            try:
                if not begun.done():  # otherwise `started` was just cancelled
                    begun.set_result(reply.facts)
                await self.read(index, reply)
            finally:
                await reply.aclose()
            await self.put(None)
        except Exception as error:  # carried to the reader, who raises it
            if begun.done():
                await self.put(error)
            else:
                begun.set_exception(error)
        finally:
            begun.cancel()

    async def read(self, index: int, reply: Reply) -> None:
        made = HeldBackAnswer(reply.facts.get("model", ""), reply.facts.get("upstream", ""), given=self.all_begun)
        self.held.append(made)
        self.observer.holds(made)
        async for event in reply.events:
            if not made.given:
                grown(made, event)
            if isinstance(event, Usage):
                self.usages[index] = event
            elif not isinstance(event, Vectors):
                await self.put(replace(event, choice=index))

    async def put(self, event: Event | BaseException | None) -> None:
        """Waits while the buffer is full, but only after all have begun: nobody reads it earlier."""
        self.buffer.append(event)
        self.arrived.set()
        while self.all_begun and len(self.buffer) > MOST_BUFFERED:
            self.room.clear()
            await self.room.wait()

    async def aclose(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, *self.begun, return_exceptions=True)

    def total(self) -> Usage:
        """Each prompt is counted once, as OpenAI does; completion tokens are added up.  A count that one reply lacks is
        None in total, and is then estimated where the call is measured."""
        firsts = [usage for index, usage in self.usages.items() if index % self.group == 0]
        every = self.usages.values()
        return Usage(
            _sum([one.prompt_tokens for one in firsts]),
            _sum([one.completion_tokens for one in every]),
            _sum([one.cached_tokens for one in firsts]),
            max(one.load_ns for one in every),
            sum(one.prompt_ns for one in every),
            sum(one.eval_ns for one in every),
            _sum([one.thinking_tokens for one in every]),
        )


def _sum(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
