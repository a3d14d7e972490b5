"""One generation for all who ask the same at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from proxy.streams import Replay, replay
from proxy.types import Call, Event, Events, Handler, Reply

Keep = Callable[["Flight"], Awaitable[None]]


class Flight:
    """A call under way, and everything it has said so far.

    It runs in a task of its own, so that its first caller may leave while others read on; when the last one leaves
    it is cancelled.  Its events are kept until it ends: as much as one answer.
    """

    def __init__(self, began: float) -> None:
        """began: monotonic seconds."""
        self.began = began
        self.events: list[Event] = []
        self.facts: Mapping[str, str] = {}
        self.error: Exception | None = None
        self.begun = self.over = False
        self.abandoned = False
        """Whether its last reader has left, so that nobody may join any more."""
        self.readers = 0
        self.task: asyncio.Task[None] | None = None
        self.told: list[Callable[[str], None]] = []
        self.waiting: list[asyncio.Future[None]] = []

    async def run(self, call: Call, call_next: Handler, keep: Keep) -> None:
        """`keep` is given the flight once it has ended well, and after its readers were told."""
        # Its callers' own limits are kept around each of them; here nobody's is known to be everybody's.
        call = call.but(deadline=None, progress=self.progress)
        try:
            reply = await call_next(call)
            try:
                self.facts = reply.facts
                if type(reply.events) is Replay:
                    self.events += reply.events.rest
                else:
                    async for event in reply.events:
                        self.events.append(event)
                        self.begun = True
                        self.wake()
            finally:
                await reply.aclose()
        except Exception as error:  # raised by every reader
            self.error = error
        self.begun = self.over = True
        self.wake()
        if self.error is None:
            await keep(self)

    def progress(self, text: str) -> None:
        for told in self.told:
            told(text)

    def wake(self) -> None:
        if self.waiting:
            waiting, self.waiting = self.waiting, []
            for one in waiting:
                if not one.done():
                    one.set_result(None)

    async def news(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self.waiting.append(waiter)
        await waiter

    async def joined(self, call: Call) -> Reply:
        """A reply of its own for one more reader: all that was said, and then what is being said.

        Raises what the generation failed with before its first event.
        """
        self.readers += 1
        self.told.append(call.progress)
        try:
            while not self.begun:
                await self.news()
            if self.error is not None and not self.events:
                raise self.error
        except BaseException:
            self.leave(call)
            raise
        if self.over and self.error is None:
            self.leave(call)
            return Reply.of(replay(self.events), **self.facts)
        return Reply.of(self.reading(), **self.facts).on_close(lambda: self.leave(call))

    async def reading(self) -> Events:
        at = 0
        while True:
            while at < len(self.events):
                at += 1
                yield self.events[at - 1]
            if self.over:
                if self.error is not None:
                    raise self.error
                return
            await self.news()

    def leave(self, call: Call) -> None:
        self.readers -= 1
        if call.progress in self.told:
            self.told.remove(call.progress)
        if not self.readers and not self.over and self.task is not None:
            self.abandoned = True
            self.task.cancel()
