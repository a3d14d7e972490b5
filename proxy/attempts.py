"""Announces each try of a call exactly once, even if several plugins of a chain make tries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from proxy.announcements import Attempt
from proxy.errors import ProxyError, UpstreamError
from proxy.host import Host
from proxy.meter import broken_off
from proxy.observer import ReportLog, Try
from proxy.types import Call, Handler, Reply


def nothing_else(error: ProxyError) -> bool:
    return False


async def tried(
    call: Call, call_next: Handler, host: Host, number: int = 1, also: Callable[[ProxyError], bool] = nothing_else
) -> Reply:
    """Hand the call on and announce an Attempt once it was answered, failed at an upstream, or was cancelled there.

    number: of this try among the calling plugin's tries of one model, from 1; a plugin further out may have made more.
    also: tells which other errors count as failed tries, because they are a reason to ask elsewhere.
    """
    heard = call.observer
    if not isinstance(heard, ReportLog):  # such as for a plugin's own call
        return await tried(call.but(observer=ReportLog()), call_next, host, number, also)
    one, here = begun(call, number, host)
    try:
        reply = await call_next(here)
    except ProxyError as error:
        if not one.told and (isinstance(error, UpstreamError) or also(error)):
            heard.failed()
            announce(call, one, host, error.facts, error.code or error.kind)
        raise
    except asyncio.CancelledError as error:
        left(call, None if here is call else one, host, heard, error)
        raise
    else:
        if not one.told:
            announce(call, one, host, reply.facts, "")
        return reply
    finally:
        if one.outer is not None:
            one.outer.told = one.told


def begun(call: Call, number: int, host: Host) -> tuple[Try, Call]:
    """The try, and the call to hand on, which is unchanged if a plugin further out has already begun this try."""
    outer, now = call.trying, host.clock.monotonic()
    if outer is None or outer.route != call.route:  # that try is of another call, for which a plugin makes this one
        one = Try(call.route, number, now)
    elif number <= outer.number and not outer.told and not outer.taken:
        outer.taken = True
        return outer, call
    else:
        one = Try(call.route, max(number, outer.number), now, outer)
    return one, call.but(trying=one)


def left(call: Call, one: Try | None, host: Host, heard: ReportLog, error: BaseException) -> None:
    """Handle a cancelled try.  Any plugin may have cancelled it, so the outermost one announces it, with the reason.

    A call that was never sent, for example because it waited for a host, is not a try.
    """
    if one is None:  # a plugin further out has begun it
        return
    if one.outer is not None:
        one.outer.number, one.outer.began = one.number, one.began
    elif heard.asking:
        announce(call, one, host, {"model": heard.sent_as}, broken_off(error, call, host))


def announce(call: Call, one: Try, host: Host, facts: Mapping[str, str], error: str) -> None:
    one.told = True
    model, upstream = facts.get("model", call.model), facts.get("upstream", "")
    seconds, meter = host.clock.monotonic() - one.began, call.meter
    host.announce(Attempt(call.id, call.caller, call.route, model, upstream, one.number, error, seconds, meter))
