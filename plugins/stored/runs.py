"""Background responses: a limited number run at once, others wait in a queue."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from plugins.stored.answers import RESPONSE, Document, events_of
from plugins.stored.store import Store
from proxy.errors import Busy, NotFound, ProxyError
from proxy.host import Host, interruptible_sleep
from proxy.streams import replay
from proxy.types import Call, Event, Events, Handler, Receipt, Reply, unheard
from proxy.wire.openai_responses_out import CANCELLED, NOTHING, Response, cut

log = logging.getLogger(__name__)
BEAT: Final = 2.0
"""Seconds between two heartbeats, which also notice cancellations by other processes."""
PATIENCE: Final = 2.0
"""Maximum seconds that a client waits to learn whether its call is valid, which may only be known later: for instance,
the call may have to wait for its turn in a conversation."""
AGAIN: Final = (1.0, 5.0, 15.0)
"""Seconds between attempts to store the end of a response while the database is unavailable."""


def cancelled() -> ProxyError:
    return ProxyError("The response was cancelled.", code=CANCELLED)


class Run:
    """One response, and its events so far."""

    def __init__(self, call: Call, receipt: Receipt) -> None:
        self.found = asyncio.Event()
        """Set once the call is known to be valid or invalid, or if it is queued and therefore not checked yet."""
        self.call = call.but(receipt=replace(receipt, right=self.found.set))
        self.head = receipt.head
        self.id = str(receipt.head["id"])
        self.complete = receipt.complete
        self.spelled = receipt.spelled
        self.response = Response(receipt.head, receipt.complete)
        self.events: list[Event] = []
        self.ending = False
        """Its end is being stored: from now on it cannot be cancelled, whatever its row says."""
        self.over = False
        self.error: ProxyError | None = None
        self.wrong: ProxyError | None = None
        """The error if it failed before the first event, such as an invalid call."""
        self.why: ProxyError | None = None
        """The reason why it was stopped."""
        self.task: asyncio.Task[None] | None = None
        self.news = asyncio.Event()
        self.turn = asyncio.Lock()
        """Held while an event is added, and while the end is being stored after which no more may be added."""

    def add(self, event: Event) -> None:
        self.found.set()
        self.events.append(event)
        self.response.hear(event)
        self.tell()

    def end(self, error: ProxyError | None) -> None:
        self.over, self.error = True, error
        if not self.found.is_set():
            self.wrong = error
            self.found.set()
        self.tell()

    def stored_events(self, error: ProxyError | None) -> str:
        """All events as they are stored; "" if the response is not streamed and nobody can ask for them."""
        return events_of(self.events, error) if self.call.stream else ""

    async def refused(self) -> ProxyError | None:
        """The error if the call is invalid and this is known soon."""
        await interruptible_sleep(PATIENCE, self.found)
        return self.wrong

    def tell(self) -> None:
        news, self.news = self.news, asyncio.Event()
        news.set()

    def stop(self, why: ProxyError) -> None:
        self.why = why
        if self.task is not None:
            self.task.cancel()

    async def more(self, at: int, patience: float | None = None) -> bool:
        """Wait until there are more than `at` events, or it is over; False after `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                while not self.over and at >= len(self.events):
                    await self.news.wait()
        except TimeoutError:
            return False
        return True

    async def follow(self) -> Events:
        """All events from the first one, live; a client that disconnects does not end the response."""
        yield NOTHING
        at = 0
        while not self.over or at < len(self.events):
            if at < len(self.events):
                at += 1
                yield self.events[at - 1]
            else:
                await self.more(at)
        if self.error is not None:
            raise self.error.copied()


@dataclass(slots=True)
class Shared:
    """State that survives reloads.  holders: the number of open pipelines."""

    runs: dict[str, Run] = field(default_factory=dict)
    holders: int = 0
    watch: asyncio.Task[None] | None = None


class Runs:
    def __init__(self, store: Store, host: Host, most: int, waiting: int) -> None:
        """most: responses running at once; waiting: responses in the queue."""
        self.store = store
        self.host = host
        self.room = most + waiting
        self.slots = asyncio.Semaphore(most)
        self.shared = host.process_state("stored runs", Shared)
        self.own: set[asyncio.Task[None]] = set()

    async def start(self, call: Call, receipt: Receipt, input: str, call_next: Handler) -> Reply:
        """The response's events if the call streams, else an empty reply.

        Raises Busy, and the call's error if it is invalid, unless it is queued first.
        """
        if len(self.shared.runs) >= self.room:
            message = f"{self.room} background responses are being generated or waiting; try again later."
            raise Busy(message, code="background_full", wait=5.0)
        run = Run(call.but(deadline=None, progress=unheard), receipt)
        self.shared.runs[run.id] = run
        try:
            queued: Document = {**receipt.head, "status": "queued"}
            await self.store.add_queued(call.caller, queued, input, call.stream)
            run.task = self.host.background.start(self.run(run, call_next), "answering in the background")
        except BaseException:
            del self.shared.runs[run.id]
            raise
        self.own.add(run.task)
        run.task.add_done_callback(self.own.discard)
        if (error := await run.refused()) is not None:
            with suppress(Busy, NotFound):  # no client knows its id
                await self.store.delete(call.caller, RESPONSE, run.id)
            raise error.copied()
        return Reply.of(run.follow() if call.stream else replay([]))

    async def run(self, run: Run, call_next: Handler) -> None:
        try:
            if self.slots.locked():
                run.found.set()
            async with self.slots:
                if await self.store.began(run.id, run.head):
                    await self.answer(run, call_next)
                else:
                    run.end(cancelled())
        except ProxyError as error:
            await self.failed(run, error)
        except asyncio.CancelledError:  # whoever stopped it has stored the reason
            run.end(run.why or cut())
            raise
        except Exception:
            log.exception("the response %s failed", run.id)
            await self.failed(run, ProxyError("The server failed to answer.", code="internal_error"))
        finally:
            self.shared.runs.pop(run.id, None)

    async def answer(self, run: Run, call_next: Handler) -> None:
        reply = await call_next(run.call)
        try:
            async for event in reply.events:
                async with run.turn:
                    run.add(event)
        finally:
            await reply.aclose()
        await self.ended(run, run.response.document())
        run.end(None)

    async def failed(self, run: Run, error: ProxyError) -> None:
        error.renamed(run.spelled(error.param))
        try:
            await self.ended(run, run.response.failure(error), error)
        finally:
            run.end(error)

    async def ended(self, run: Run, document: Document, error: ProxyError | None = None) -> None:
        events, run.ending = run.stored_events(error), True
        for wait in AGAIN:
            with suppress(Busy):
                await self.store.ended(run.id, document, events)
                return
            await asyncio.sleep(wait)
        await self.store.ended(run.id, document, events)

    # --- stopping, heartbeats and shutdown ---

    async def stop(self, id: str, document: Document, why: ProxyError) -> None:
        """End a response in any process.  document: stored if it does not run in this one."""
        run = self.shared.runs.get(id)
        if run is None:
            await self.store.ended(id, document, "")
            return
        await self.end(run, why)

    async def end(self, run: Run, why: ProxyError) -> None:
        async with run.turn:  # otherwise clients could read events that are not stored
            if await self.store.ended(run.id, run.response.failure(why), run.stored_events(why)):
                run.stop(why)

    async def watch(self) -> None:
        """Send heartbeats for the responses of this process, and end those that another process has cancelled."""
        while True:
            await asyncio.sleep(BEAT)
            try:
                await self.look()
            except Busy:
                continue
            except Exception:  # the loop must go on: without heartbeats all its responses would count as lost
                log.exception("background responses could not be checked")

    async def look(self) -> None:
        # A run without a task may not have a row yet, and cannot have been cancelled.
        runs = {id: run for id, run in self.shared.runs.items() if run.task is not None}
        wanted = await self.store.beat(runs) if runs else set()
        for id in runs.keys() - wanted:
            if not (runs[id].ending or runs[id].over):
                runs[id].stop(cancelled())

    def open(self) -> None:
        self.shared.holders += 1
        if self.shared.watch is None:
            self.shared.watch = self.host.background.start(self.watch(), "watching responses in the background")

    async def close(self) -> None:
        """An old pipeline waits until its own responses are complete; the last one stops all."""
        self.shared.holders -= 1
        if self.shared.holders:
            if self.own:
                await asyncio.wait(self.own)
            return
        if self.shared.watch is not None:
            self.shared.watch.cancel()
            self.shared.watch = None
        runs = list(self.shared.runs.values())
        for run in runs:
            with suppress(Busy):
                await self.end(run, cut())
            run.stop(cut())
        if tasks := [run.task for run in runs if run.task is not None]:
            await asyncio.wait(tasks)
