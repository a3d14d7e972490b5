"""Several answers to one question, which Ollama does not give: as many calls at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import replace

from proxy.types import Call, Chat, Event, Events, Handler, Reply, Usage, Vectors

WAITING = 256
"""Events kept for a reader that is slower than the models."""


async def fanned_out(call: Call, ask: Chat, handler: Handler) -> Reply:
    """`n` calls with `seed`, `seed + 1`, …; a choice that fails to start fails the call, and so does a later one."""
    replies = await started([handler(one) for one in singles(call, ask)])
    merged = Merged(replies)
    return Reply.of(merged.events(), **replies[0].facts).on_close(merged.aclose)


def singles(call: Call, ask: Chat) -> Iterable[Call]:
    seed = ask.options.get("seed")
    for index in range(ask.n):
        options = ask.options if seed is None else {**ask.options, "seed": seed + index}
        yield call.but(ask=replace(ask, n=1, options=options))


async def started(starting: Iterable[Awaitable[Reply]]) -> list[Reply]:
    """All the replies, or the first failure with every other one ended."""
    tasks = [asyncio.ensure_future(one) for one in starting]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Reply):
                await result.aclose()
        raise


class Merged:
    """Several replies as one: events in the order of their arrival, one Usage at the end."""

    def __init__(self, replies: list[Reply]) -> None:
        self.replies = replies
        self.queue: asyncio.Queue[Event | BaseException | None] = asyncio.Queue(WAITING)
        self.tasks: list[asyncio.Task[None]] = []

    async def events(self) -> Events:
        loop = asyncio.get_running_loop()
        self.tasks += [loop.create_task(self.pump(index, one)) for index, one in enumerate(self.replies)]
        usages: list[Usage] = []
        running = len(self.tasks)
        while running:
            event = await self.queue.get()
            if event is None:
                running -= 1
            elif isinstance(event, BaseException):
                raise event
            elif isinstance(event, Usage):
                usages.append(event)
            else:
                yield event
        if usages:
            yield total(usages)

    async def pump(self, index: int, reply: Reply) -> None:
        try:
            async for event in reply.events:
                await self.queue.put(event if isinstance(event, Usage | Vectors) else replace(event, choice=index))
            await self.queue.put(None)
        except Exception as error:  # carried to the reader, who raises it
            await self.queue.put(error)

    async def aclose(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for reply in self.replies:
            await reply.aclose()


def total(usages: list[Usage]) -> Usage:
    """The prompt is counted once, as OpenAI does; the answers are added up."""
    return Usage(
        usages[0].prompt_tokens,
        _sum([one.completion_tokens for one in usages]),
        usages[0].cached_tokens,
        max(one.load_ns for one in usages),
        sum(one.prompt_ns for one in usages),
        sum(one.eval_ns for one in usages),
    )


def _sum(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
