"""One generation shared by all identical calls that arrive while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from msgspec import Struct, field

from plugins.cache.entry import in_pieces
from proxy.errors import ProxyError, UpstreamError
from proxy.host import Background
from proxy.observer import ReportLog
from proxy.streams import Replay, SharedUsage
from proxy.types import Call, Deadline, Event, Events, Handler, Reply, Usage


class Flight(Struct, eq=False):
    """A running generation, with all its events so far.

    It runs in its own task, so that the first caller can disconnect while others continue to read; when the last one
    leaves, it is cancelled.  All its events stay in memory until it ends: one answer's worth.

    One reader pays for the whole generation: the first, or, when that one leaves before the end, the next remaining
    one.  For all others the answer counts as `shared`.
    """

    began: float
    """Monotonic seconds."""
    ended: Callable[[Flight], None]
    """Called when the flight can no longer be joined, before its readers resume."""
    deadline: Deadline | None = None
    """The latest of its readers' deadlines; joining readers extend it."""
    events: list[Event] = []
    facts: Mapping[str, str] = {}
    error: Exception | None = None
    over: bool = False
    whole: bool = False
    """Whether the first call was not streamed, so that texts arrive in one event each."""
    abandoned: bool = False
    """Whether its last reader has left, so that nobody can join any more."""
    readers: dict[object, Callable[[str], None]] = {}
    """The readers in order of arrival, each with its progress callback."""
    payer: object = None
    asked: ReportLog = field(default_factory=ReportLog)
    task: asyncio.Task[None] | None = None
    waiting: list[asyncio.Future[None]] = []

    @classmethod
    def of(cls, began: float, ended: Callable[[Flight], None], deadline: Deadline | None) -> Flight:
        """deadline: the first caller's; it is copied, so that extending the flight's does not change it."""
        return cls(began, ended, None if deadline is None else Deadline(deadline.at))

    def begun_by(self, call: Call, call_next: Handler, background: Background) -> Awaitable[Reply]:
        """Start the generation; gives the reply for its first reader.  Raises Busy.

        It runs immediately up to its first wait, so that it may already be over when this returns.
        """
        reader = self.entered(call)
        self.task = background.start_eagerly(self.run(call, call_next, background), "generating a shared answer")
        return self.heard(call, reader)

    async def run(self, call: Call, call_next: Handler, background: Background) -> None:
        self.whole = not call.stream
        try:
            made = call.but(progress=self.progress, deadline=self.deadline, observer=self.asked)
            reply = await call_next(made)
            self.facts = reply.facts
            if type(reply.events) is Replay and not reply.closers:
                self.events += reply.events.rest
            else:
                await self.read(reply)
        except Exception as error:  # raised again for every reader
            self.error = error
        except BaseException:  # cancelled: its last reader has left, or the server is shutting down
            self.error = UpstreamError("The generation was broken off.", "cut")
            raise
        finally:
            self.over = True
            self.wake()
            background.discard_current()
            self.ended(self)

    async def read(self, reply: Reply) -> None:
        try:
            async for event in reply.events:
                self.events.append(event)
                if self.waiting:
                    self.wake()
        finally:
            await reply.aclose()

    def progress(self, text: str) -> None:
        for tell in list(self.readers.values()):
            tell(text)

    def wake(self) -> None:
        waiting, self.waiting = self.waiting, []
        for one in waiting:
            if not one.done():
                one.set_result(None)

    def news(self) -> asyncio.Future[None]:
        """A future that is done when there are new events, the flight has ended, or the payer has changed."""
        waiter = asyncio.get_running_loop().create_future()
        self.waiting.append(waiter)
        return waiter

    def joined(self, call: Call) -> Awaitable[Reply]:
        """A reply for one more reader: all events so far, then the new ones as they arrive.

        Raises the generation's error if it fails before its first event.
        """
        return self.heard(call, self.entered(call))

    def entered(self, call: Call) -> object:
        """Add a reader; gives its identity."""
        reader = object()
        self.readers[reader] = call.progress
        if self.payer is None:
            self.payer = reader
        if self.deadline is not None:
            self.deadline.put_off(call.deadline)
        return reader

    async def heard(self, call: Call, reader: object) -> Reply:
        try:
            while not (self.events or self.over):
                await self.news()
            if self.error is not None and not self.events:
                raise copied_error(self.error)
        except BaseException as error:
            self.leave(call, reader, error.args)
            raise
        pays = self.payer is reader
        facts = self.facts if pays else {**self.facts, "cache": "shared"}
        if self.over and self.error is None:
            self.leave(call, reader)
            return Reply(Replay(self.cut(self.events, call)), facts)
        return Reply.of(self.reading(call, reader, pays), **facts).on_close(lambda: self.leave(call, reader))

    def cut(self, events: Iterable[Event], call: Call) -> Iterable[Event]:
        """The events in the form this reader expects: long texts in pieces if it streams and the flight does not."""
        return in_pieces(events) if self.whole and call.stream else events

    async def reading(self, call: Call, reader: object, pays: bool) -> Events:
        at = 0
        while True:
            if not pays and self.payer is reader:
                pays = True
                yield payment_event(self.events[:at])
            while at < len(self.events):
                new, at = self.events[at:], len(self.events)
                for event in self.cut(new, call):
                    yield event
            if self.over:
                if self.error is not None:
                    raise copied_error(self.error)
                return
            await self.news()

    def leave(self, call: Call, reader: object, why: Sequence[object] = ()) -> None:
        """Remove a reader; the last one cancels the generation.  why: the reader's cancellation message, passed on."""
        del self.readers[reader]
        if self.payer is reader and (self.over or not self.readers):  # no other reader can become the payer
            self.asked.repeat(call.observer)
        if not self.readers and not self.over and self.task is not None:
            self.abandoned = True
            self.ended(self)
            self.task.cancel(*why)
        elif self.readers and not self.over and self.payer is reader:
            self.payer = next(iter(self.readers))
            call.observer.spared()
            self.wake()


def name_of(where: str, call: Call) -> str:
    """The name under which a running generation is shared.  It includes the models that the API key allows: a
    fallback may lead one key to a model that is closed to another."""
    return where if call.models is None else f"{where} {sorted(call.models)}"


def payment_event(events: Sequence[Event]) -> SharedUsage:
    """The event that makes a reader the payer, with the usage that it has already seen in these events."""
    told = next((event for event in reversed(events) if isinstance(event, Usage)), None)
    if told is None:
        return SharedUsage(None, None)
    known = (told.prompt_tokens, told.completion_tokens, told.cached_tokens)
    return SharedUsage(*known, told.load_ns, told.prompt_ns, told.eval_ns, told.thinking_tokens)


def copied_error(error: Exception) -> Exception:
    """A copy of an error for one reader, since plugins around it may add details."""
    return error.copied() if isinstance(error, ProxyError) else error
