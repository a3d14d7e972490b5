"""One generation for all who ask the same at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from msgspec import Struct, field

from plugins.cache.entry import in_pieces
from proxy.errors import ProxyError, UpstreamError
from proxy.host import Background
from proxy.observer import Heard
from proxy.streams import Owed, Replay
from proxy.types import Call, Deadline, Event, Events, Handler, Reply, Usage


class Flight(Struct, eq=False):
    """A call under way, and everything it has said so far.

    It runs in a task of its own, so that its first caller may leave while others read on; when the last one leaves
    it is cancelled.  Its events are kept until it ends: as much as one answer.

    One of its readers pays for all of it: the first, and when that one leaves before the end, the next one who stays.
    To all others it is `shared`.
    """

    began: float
    """Monotonic seconds."""
    ended: Callable[[Flight], None]
    """Called when it can be joined no more, before its readers go on."""
    deadline: Deadline | None = None
    """When the last of its readers does not wait any more: its own, which is put off."""
    events: list[Event] = []
    facts: Mapping[str, str] = {}
    error: Exception | None = None
    over: bool = False
    whole: bool = False
    """Whether it was asked for a whole answer, whose texts have no pieces."""
    abandoned: bool = False
    """Whether its last reader has left, so that nobody may join any more."""
    readers: dict[object, Callable[[str], None]] = {}
    """In the order in which they came, with who tells each of them why it waits."""
    payer: object = None
    asked: Heard = field(default_factory=Heard)
    task: asyncio.Task[None] | None = None
    waiting: list[asyncio.Future[None]] = []

    @classmethod
    def of(cls, began: float, ended: Callable[[Flight], None], deadline: Deadline | None) -> Flight:
        """deadline: its first caller's, which is not put off."""
        return cls(began, ended, None if deadline is None else Deadline(deadline.at))

    def begun_by(self, call: Call, call_next: Handler, background: Background) -> Awaitable[Reply]:
        """The reply for its first reader.  Raises Busy.

        It goes on at once to where it has to wait, so that who comes next may find it there, or over already.
        """
        reader = self.entered(call)
        self.task = background.begin(self.run(call, call_next, background), "generating a shared answer")
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
        except Exception as error:  # raised by every reader
            self.error = error
        except BaseException:  # cancelled, and by its last reader unless the server stops
            self.error = UpstreamError("The generation was broken off.", "cut")
            raise
        finally:
            self.over = True
            self.wake()
            background.over()
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
        """Done when more is known."""
        waiter = asyncio.get_running_loop().create_future()
        self.waiting.append(waiter)
        return waiter

    def joined(self, call: Call) -> Awaitable[Reply]:
        """A reply of its own for one more reader: all that was said, and then what is being said.

        Raises what the generation failed with before its first event.
        """
        return self.heard(call, self.entered(call))

    def entered(self, call: Call) -> object:
        """One more reader."""
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
                raise own(self.error)
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
        """As this reader expects them."""
        return in_pieces(events) if self.whole and call.stream else events

    async def reading(self, call: Call, reader: object, pays: bool) -> Events:
        at = 0
        while True:
            if not pays and self.payer is reader:
                pays = True
                yield owed(self.events[:at])
            while at < len(self.events):
                new, at = self.events[at:], len(self.events)
                for event in self.cut(new, call):
                    yield event
            if self.over:
                if self.error is not None:
                    raise own(self.error)
                return
            await self.news()

    def leave(self, call: Call, reader: object, why: Sequence[object] = ()) -> None:
        """why: the message with which it was cancelled, for the generation if it is the last."""
        del self.readers[reader]
        if self.payer is reader and (self.over or not self.readers):  # nobody else pays any more
            self.asked.retold(call.observer)
        if not self.readers and not self.over and self.task is not None:
            self.abandoned = True
            self.ended(self)
            self.task.cancel(*why)
        elif self.readers and not self.over and self.payer is reader:
            self.payer = next(iter(self.readers))
            call.observer.spared()
            self.wake()


def name_of(where: str, call: Call) -> str:
    """Under which an answer is shared while it is under way: a fallback may lead one key to a model that is closed to
    another."""
    return where if call.models is None else f"{where} {sorted(call.models)}"


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
