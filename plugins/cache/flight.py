"""One generation for all who ask the same at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from proxy.errors import ProxyError, UpstreamError
from proxy.streams import Owed, Replay, replay
from proxy.types import Call, Event, Events, Handler, Reply, Usage


class Flight:
    """A call under way, and everything it has said so far.

    It runs in a task of its own, so that its first caller may leave while others read on; when the last one leaves
    it is cancelled.  Its events are kept until it ends: as much as one answer.

    One of its readers pays: the first, and when that one leaves before the end, the next one who stays.  To all others
    it is `shared`.
    """

    __slots__ = (
        "abandoned", "began", "begun", "call", "ended", "error", "events", "facts", "over", "payer", "readers", "task",
        "told", "waiting",
    )  # fmt: skip

    def __init__(self, began: float, ended: Callable[[Flight], None]) -> None:
        """began: monotonic seconds.  ended: called when it can be joined no more, before its readers go on."""
        self.began = began
        self.ended = ended
        self.call: Call | None = None
        """As it was sent on, until it is over."""
        self.events: list[Event] = []
        self.facts: Mapping[str, str] = {}
        self.error: Exception | None = None
        self.begun = self.over = False
        self.abandoned = False
        """Whether its last reader has left, so that nobody may join any more."""
        self.readers: list[object] = []
        """In the order in which they came."""
        self.payer: object = None
        self.task: asyncio.Task[None] | None = None
        self.told: list[Callable[[str], None]] = []
        self.waiting: list[asyncio.Future[None]] = []

    async def run(self, call: Call, call_next: Handler) -> None:
        self.call = call.but(progress=self.progress)
        try:
            await self.read(await call_next(self.call))
        except Exception as error:  # raised by every reader
            self.error = error
        except BaseException:  # cancelled, and by its last reader unless the server stops
            self.error = UpstreamError("The generation was broken off.", "cut")
            raise
        finally:
            self.begun = self.over = True
            self.call = None  # it leads back here, and the collector that looks for such cycles comes seldom
            self.wake()
            self.ended(self)

    async def read(self, reply: Reply) -> None:
        try:
            self.facts = reply.facts
            if type(reply.events) is Replay:
                self.events += reply.events.rest
                return
            async for event in reply.events:
                self.events.append(event)
                self.begun = True
                self.wake()
        finally:
            await reply.aclose()

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
        reader = object()
        self.readers.append(reader)
        if self.payer is None:
            self.payer = reader
        self.told.append(call.progress)
        if self.call is not None:
            self.wait_for(call.deadline)
        try:
            while not self.begun:
                await self.news()
            if self.error is not None and not self.events:
                raise own(self.error)
        except BaseException:
            self.leave(call, reader)
            raise
        pays = self.payer is reader
        facts = self.facts if pays else {**self.facts, "cache": "shared"}
        if self.over and self.error is None:
            self.leave(call, reader)
            return Reply.of(replay(self.events), **facts)
        return Reply.of(self.reading(reader, pays), **facts).on_close(lambda: self.leave(call, reader))

    async def reading(self, reader: object, pays: bool) -> Events:
        at = 0
        while True:
            if not pays and self.payer is reader:
                pays = True
                yield owed(self.events[:at])
            while at < len(self.events):
                at += 1
                yield self.events[at - 1]
            if self.over:
                if self.error is not None:
                    raise own(self.error)
                return
            await self.news()

    def wait_for(self, deadline: float | None) -> None:
        """It is given up when nobody waits any more, and not when the first one does not."""
        if self.call is not None and self.call.deadline is not None:
            later = None if deadline is None else max(deadline, self.call.deadline)
            # This copy is the flight's own and already on its way; `retry`, further in, looks at it before each try.
            setattr(self.call, "deadline", later)  # noqa: B010  (the type checker holds that nobody else does this)

    def leave(self, call: Call, reader: object) -> None:
        self.readers.remove(reader)
        if call.progress in self.told:
            self.told.remove(call.progress)
        if not self.readers and not self.over and self.task is not None:
            self.abandoned = True
            self.ended(self)
            self.task.cancel()
        elif self.readers and not self.over and self.payer is reader:
            self.payer = self.readers[0]
            self.wake()


def owed(events: Sequence[Event]) -> Owed:
    """With what a reader of these events was told already."""
    told = next((event for event in reversed(events) if isinstance(event, Usage)), None)
    if told is None:
        return Owed(None, None)
    known = (told.prompt_tokens, told.completion_tokens, told.cached_tokens)
    return Owed(*known, told.load_ns, told.prompt_ns, told.eval_ns, told.thinking_tokens)


def own(error: Exception) -> Exception:
    """Each reader's own copy: whoever stands around it may tell more of it."""
    return error.copied() if isinstance(error, ProxyError) else error
