"""One try of a call: announced once, however many parts of a chain try it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Final

from proxy.errors import ProxyError, UpstreamError
from proxy.host import Host
from proxy.meter import METERED
from proxy.news import Attempt
from proxy.types import Call, Handler, Reply


class Try:
    """One under way, as those further in see it.

    told: whether one of them has announced it: who stands furthest in knows best what was asked.
    """

    __slots__ = ("number", "route", "told")

    def __init__(self, route: str, number: int) -> None:
        self.route = route
        self.number = number
        self.told = False


OUTER: Final[ContextVar[Try | None]] = ContextVar("outer try", default=None)


def nothing_else(error: ProxyError) -> bool:
    return False


async def tried(
    call: Call, call_next: Handler, host: Host, number: int = 1, also: Callable[[ProxyError], bool] = nothing_else
) -> Reply:
    """Hand the call on, and announce an Attempt when it was answered or has failed at an upstream.

    number: counts from 1 over the tries of one model that are made here; those of who stands further out count, too.
    also: which other failures count as such, because they are a reason to ask elsewhere.
    """
    outer = OUTER.get()
    if outer is not None and outer.route != call.route:
        outer = None  # this is a plugin's own call
    mine = Try(call.route, number if outer is None else max(number, outer.number))
    began, token = host.clock.monotonic(), OUTER.set(mine)
    try:
        reply = await call_next(call)
    except ProxyError as error:
        if isinstance(error, UpstreamError) or also(error):
            announce(call, mine, host, began, error.facts, error.code or error.kind)
        raise
    else:
        if not mine.told:
            announce(call, mine, host, began, reply.facts, "")
        return reply
    finally:
        OUTER.reset(token)
        if outer is not None:
            outer.told = mine.told


def announce(call: Call, one: Try, host: Host, began: float, facts: Mapping[str, str], error: str) -> None:
    if one.told:
        return
    one.told = True
    if error:
        call.witness.failed()
    model, upstream = facts.get("model", call.model), facts.get("upstream", "")
    seconds = host.clock.monotonic() - began
    meter = call.tags.get(METERED, "")
    host.announce(Attempt(call.id, call.caller, call.route, model, upstream, one.number, error, seconds, meter))
