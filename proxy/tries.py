"""One try of a call: announced once, however many parts of a chain try it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Final

from proxy.errors import ProxyError, UpstreamError
from proxy.host import Host
from proxy.meter import METERED, broken_off
from proxy.news import Attempt
from proxy.types import Call, Handler, Reply
from proxy.witness import NOBODY, Heard

OUTER: Final[ContextVar[Try | None]] = ContextVar("outer try", default=None)


class Try:
    """One under way, as those further in see it.

    outer: the same one, as who stands further out began it.  began: monotonic seconds.
    told: whether one of them has announced it: who stands furthest in knows best what was asked.
    """

    __slots__ = ("began", "number", "outer", "route", "told")

    def __init__(self, route: str, number: int, began: float) -> None:
        outer: Try | None = OUTER.get()
        if outer is not None and outer.route != route:
            outer = None  # this is a plugin's own call
        self.outer = outer
        self.route: str = route
        self.number: int = number if outer is None else max(number, outer.number)
        self.began = began
        self.told = False

    def over(self) -> None:
        if self.outer is not None:
            self.outer.told = self.told


def nothing_else(error: ProxyError) -> bool:
    return False


async def tried(
    call: Call, call_next: Handler, host: Host, number: int = 1, also: Callable[[ProxyError], bool] = nothing_else
) -> Reply:
    """Hand the call on, and announce an Attempt when it was answered, or has failed or was broken off at an upstream.

    number: counts from 1 over the tries of one model that are made here; those of who stands further out count, too.
    also: which other failures count as such, because they are a reason to ask elsewhere.
    """
    call = call.but(witness=Heard()) if call.witness is NOBODY else call
    mine = Try(call.route, number, host.clock.monotonic())
    token = OUTER.set(mine)
    try:
        reply = await call_next(call)
    except ProxyError as error:
        if isinstance(error, UpstreamError) or also(error):
            announce(call, mine, host, error.facts, error.code or error.kind)
        raise
    except asyncio.CancelledError as error:
        left(call, mine, host, error)
        raise
    else:
        announce(call, mine, host, reply.facts, "")
        return reply
    finally:
        OUTER.reset(token)
        mine.over()


def left(call: Call, one: Try, host: Host, error: BaseException) -> None:
    """One was cancelled: who stands furthest out tells of it, since any of them may have done that, and for a reason.

    What was never sent, such as from the line, is no try.
    """
    if one.outer is not None:
        one.outer.number, one.outer.began = one.number, one.began
    elif isinstance(call.witness, Heard) and call.witness.asking:
        told(call, one, host, {"model": call.witness.sent_as}, broken_off(error, call, host))


def announce(call: Call, one: Try, host: Host, facts: Mapping[str, str], error: str) -> None:
    if one.told:
        return
    if error:
        call.witness.failed()
    told(call, one, host, facts, error)


def told(call: Call, one: Try, host: Host, facts: Mapping[str, str], error: str) -> None:
    one.told = True
    model, upstream = facts.get("model", call.model), facts.get("upstream", "")
    seconds = host.clock.monotonic() - one.began
    meter = call.tags.get(METERED, "")
    host.announce(Attempt(call.id, call.caller, call.route, model, upstream, one.number, error, seconds, meter))
