"""Measures what a call takes: once, at the outermost plugin that asks for it; announced at the call's end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Final, TypeVar

from msgspec.structs import replace

from proxy import rejected
from proxy.announcements import KEPT, CallEnded, Rejected
from proxy.asks import choices
from proxy.errors import ProxyError, UpstreamError, was_asked
from proxy.estimates import LETTERS, guess, letters
from proxy.host import Host
from proxy.observer import HeldBackAnswer, ReportLog
from proxy.readiness import STOPPED
from proxy.rejected import NOTHING, Counts
from proxy.streams import Replay, SharedUsage
from proxy.types import Call, Event, Events, Finish, Handler, Reply, Text, Thinking, ToolCalled, Usage, Vectors

log = logging.getLogger(__name__)
Known = TypeVar("Known")
NUMBERS: Final = count(1)
LEFT: Final = "client_left"
LATE: Final = "upstream_timeout"
"""Also the message with which a task is cancelled that takes too long."""
BROKEN: Final = "internal_error"
WORKED: Final = ("timeout", "invalid_answer")
"""Causes of failure at which the upstream has read the prompt, or part of it."""


async def metered(call: Call, call_next: Handler, host: Host) -> Reply:
    """Hand the call on and measure it; its CallEnded is announced exactly once, however many plugins call this."""
    if call.meter and call.meter.rpartition(" ")[0] == call.route:
        return await call_next(call)
    tally = Tally.of(call, host)
    try:
        reply = await call_next(call.but(meter=tally.meter, observer=tally))
    except BaseException as error:
        tally.end(error)
        raise
    return tally.reading(reply)


def refused(call: Call, error: ProxyError, host: Host) -> None:
    """Announce the end of a call that was refused before it entered its chain."""
    Tally.of(call, host).end(error)


class Tally(ReportLog, eq=False, kw_only=True):
    """The measurement of one call, updated with each event.  at: Unix seconds; began, first: monotonic seconds."""

    call: Call
    host: Host
    meter: str
    at: float
    began: float
    first: float | None = None
    facts: Mapping[str, str] = {}
    usage: Usage | None = None
    finish: str = ""
    thought: int = 0
    said: int = 0
    pieces: int = 0
    """thought, said: characters of reasoning and of the rest; pieces: their events, about one per token."""
    finished: int = 0
    """Number of complete choices."""
    whole: bool = False
    """Whether the answer was read to its end."""
    over: bool = False
    owed: bool = False
    """Whether this call pays for a generation that it joined as another call's; see `Owed`."""
    worked: bool = False
    """Whether an upstream has worked on the call, although no event arrived."""

    @classmethod
    def of(cls, call: Call, host: Host) -> Tally:
        """A measurement that begins now."""
        clock = host.clock
        meter = f"{call.route} {next(NUMBERS)}"
        return cls(call=call, host=host, meter=meter, at=clock.time(), began=clock.monotonic())

    def foretold(self, facts: Mapping[str, str]) -> None:
        self.call.observer.foretold(facts)

    def reading(self, reply: Reply) -> Reply:
        self.first = self.host.clock.monotonic()
        self.facts = reply.facts
        if type(reply.events) is Replay:
            left = reply.events.left()
            self.safely(lambda: self.add_all(left))
            self.whole = bool(self.finish)
            self.end(None)
            return reply
        return reply.through(self.counted).on_close(partial(self.end, None))

    async def counted(self, events: Events) -> Events:
        try:
            async for event in events:
                if type(event) is Text:  # the fast path for nearly all events
                    self.pieces += 1
                    self.said += len(event.text)
                else:
                    self.add(event)
                yield event
            self.whole = True
        except Exception as error:
            self.end(error)
            raise

    def add_all(self, events: Sequence[Event]) -> None:
        said: list[str] = []
        for event in events:
            if type(event) is Text:  # the fast path for nearly all events
                said.append(event.text)
            else:
                self.add(event)
        self.pieces += len(said)
        self.said += sum(map(len, said))

    def add(self, event: Event) -> None:
        if isinstance(event, Text):
            self.pieces += 1
            self.said += len(event.text)
        elif isinstance(event, Finish):
            self.finish = event.reason
            self.finished += 1
        elif isinstance(event, Usage):
            self.usage = event
            self.owed = self.owed or type(event) is SharedUsage
        elif isinstance(event, Thinking):
            self.pieces += 1
            self.thought += len(event.text)
        elif isinstance(event, ToolCalled):
            called = len(event.name) + len(event.arguments)
            self.said += called
            self.pieces += max(1, round(called / LETTERS))  # one event, but many tokens
        elif isinstance(event, Vectors):
            self.finish = "stop"
            self.finished += 1

    def end(self, error: BaseException | None) -> None:
        """Announce the CallEnded.  Only the first call of this has an effect."""
        if self.over:
            return
        self.over = True
        code, tries = "", 0 if self.first is None else 1
        if error is not None:
            code, tries = self.failing(error), max(tries, was_asked(error))
        elif not self.whole and self.finished < choices(self.call.ask):
            code = unread(self.host)
        tries = self.failures + self.asking or tries
        # Features wait for the end of every call, for example to give back its place, whichever figures are missing.
        ended = self.safely(lambda: self.ended(code, tries)) or self.bare(code)
        cost = self.safely(lambda: self.host.price(ended))
        self.host.announce(ended if cost is None else replace(ended, cost=cost))

    def safely(self, step: Callable[[], Known]) -> Known | None:
        """The result of a step that computes figures; None if it fails, which is logged."""
        try:
            return step()
        except Exception:
            log.exception("not all figures of call %s are known, because computing them failed", self.call.id)
            return None

    def failing(self, error: BaseException) -> str:
        """The error code of the failure, whose facts are added to the measurement."""
        if isinstance(error, ProxyError):
            self.facts = {**self.facts, **error.facts}
        if self.first is None:
            self.worked = bool(self.sent_as) and was_at_work(error, self.asking)
        if isinstance(error, ProxyError):
            return error.code or error.kind
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            return broken_off(error, self.call, self.host)
        return BROKEN

    def ended(self, error: str, tries: int) -> CallEnded:
        """tries: how often an upstream was asked, if the facts do not say it."""
        now, call, fact = self.host.clock.monotonic(), self.call, self.facts.get
        cache = "miss" if self.owed else "shared" if self.spares else fact("cache", "")
        kept = cache in KEPT
        usage, tokens, estimated, lost = self.took()
        times = NOTHING if kept else usage
        return CallEnded(
            *self.asked(),
            fact("model", self.sent_as if self.worked else ""),
            fact("upstream", ""),
            *tokens,
            estimated,
            0 if kept else int(float(fact("queue-ms", 0)) * 1e6),
            times.load_ns,
            times.prompt_ns,
            times.eval_ns,
            None if self.first is None else int((self.first - self.began) * 1e9),
            int((now - self.began) * 1e9),
            cache,
            0 if kept else int(fact("attempts", tries)),
            fact("fallback", ""),
            "" if error else self.finish,
            error,
            None,
            call.about,
            self.tags(),
            fact("cache-key", ""),
            self.meter,
            0 if kept else int(fact("kept-tokens", 0)),
            lost,
        )

    def asked(self) -> tuple[str, float, str, str, str, bool, str]:
        """What the CallEnded begins with."""
        call = self.call
        return call.id, self.at, call.caller, call.key, call.route, call.stream, call.model

    def bare(self, error: str) -> CallEnded:
        """What is certain of a call whose figures cannot be computed."""
        call, fact, usage = self.call, self.facts.get, self.usage or NOTHING
        return CallEnded(
            *self.asked(),
            fact("model", ""),
            fact("upstream", ""),
            usage.prompt_tokens,
            usage.completion_tokens,
            total_ns=int((self.host.clock.monotonic() - self.began) * 1e9),
            finish="" if error else self.finish,
            error=error,
            about=call.about,
            tags=call.tags,
            meter=self.meter,
        )

    def took(self) -> tuple[Usage, Counts, tuple[str, ...], tuple[Rejected, ...]]:
        """Times and tokens, undelivered answers included, the names of estimated ones, and the undelivered answers."""
        usage = self.usage or NOTHING
        if self.last is not None:
            self.see_through(self.last)
        tokens, estimated = self.tokens(usage)
        if not self.making:
            return usage, tokens, estimated, ()
        about = guess([], "", letters(self.call.ask) / LETTERS)
        tokens, estimated, lost = rejected.in_all(tokens, estimated, self.making, about, self.call.stream)
        return rejected.with_times(usage, lost), tokens, estimated, lost

    def tags(self) -> Mapping[str, str]:
        """The call's tags, and the facts that plugins registered with `Host.record`."""
        tags, recorded, facts = self.call.tags, self.host.bus.recorded_facts, self.facts
        if not tags and not recorded:
            return tags
        told = {name: facts[name] for name in recorded if name in facts}
        return {**tags, **told}

    def see_through(self, made: HeldBackAnswer) -> None:
        """Count also what was generated but still held back when the client stopped reading."""
        if made.given:
            self.pieces, self.said = max(self.pieces, made.pieces), max(self.said, made.said)

    def tokens(self, usage: Usage) -> tuple[Counts, tuple[str, ...]]:
        """Prompt, completion, cached and thinking tokens of the delivered answer; the names of the estimated ones."""
        prompt, completion, thinking = usage.prompt_tokens, usage.completion_tokens, usage.thinking_tokens
        if prompt is not None and completion is not None and not self.thought:  # nearly always
            return (prompt, completion, usage.cached_tokens, thinking or 0), ()
        guessed: list[str] = []
        if prompt is None and (self.first is not None or (self.worked and not self.all_lost)):  # else none was read
            prompt = guess(guessed, "prompt_tokens", letters(self.call.ask) / LETTERS)
        if self.first is not None:
            if completion is None:
                made = self.pieces if self.call.stream else (self.said + self.thought) / LETTERS
                completion = guess(guessed, "completion_tokens", made)
            if thinking is None and self.thought:
                share = self.thought / (self.thought + self.said)
                thinking = guess(guessed, "thinking_tokens", completion * share)
        return (prompt, completion, usage.cached_tokens, thinking or 0), tuple(guessed)


def broken_off(error: BaseException, call: Call, host: Host) -> str:
    """The error code of a cancelled call: that of a timeout if its time was up, else as `unread`."""
    deadline = call.deadline
    late = deadline is not None and host.clock.monotonic() >= deadline.at
    return LATE if late or LATE in error.args else unread(host)


def unread(host: Host) -> str:
    """The error code if nobody reads on: the client left, unless this server is shutting down and cut the call."""
    return STOPPED if host.services.readiness.cut else LEFT


def was_at_work(error: BaseException, asking: bool) -> bool:
    """Whether the upstream had begun to work on a call that failed: assumed for timeouts and cancelled calls, not for
    those that it refused or broke off without an event.  asking: whether the last try had not failed yet."""
    if isinstance(error, UpstreamError):
        return error.cause in WORKED
    return asking and not isinstance(error, ProxyError)
