"""A request that a dialect has read -> the Call that goes through a chain."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from aiohttp import web

from proxy.edge.exchange import REQUEST_ID, Exchange, exchange_of
from proxy.errors import BadCall
from proxy.observer import Heard
from proxy.types import JSON, Ask, Call, Caller, Deadline

TRACE_PARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
TRACE_STATE: Final = re.compile(r"[\x20-\x7e]{1,512}")
READ_TIMEOUT: Final = "x-stainless-read-timeout"
"""Seconds that OpenAI's SDKs wait for bytes."""
EARLIER: Final = 1.0
"""Seconds before such a limit at which the call is given up, so that the SDK reads why instead of trying again; a
tenth of the limit where that is less."""


@dataclass(frozen=True, slots=True)
class Own:
    """Of a chain, whom it admits, and the parts of a request that its plugins declared as theirs.

    admit: raises Denied where a caller's key does not open the chain, or the model.  fields: of the body; brings: those
    that bring messages, so that the client's own may be empty, and how names of models begin that do; flags: those that
    are booleans.
    """

    admit: Callable[[Call, Caller], None]
    fields: Collection[str] = ()
    headers: Collection[str] = ()
    brings: Collection[str] = ()
    flags: Collection[str] = ()


class Listening(Heard, eq=False, kw_only=True):
    """Puts what is known early of an answer where its head is written."""

    exchange: Exchange

    def foretold(self, facts: Mapping[str, str]) -> None:
        self.exchange.facts = {**self.exchange.facts, **facts}


class Read(Protocol):
    """What every dialect reads of a request."""

    model: str
    about: dict[str, JSON]
    extra: dict[str, JSON]


def call_of(request: web.BaseRequest, route: str, asked: Read, ask: Ask, stream: bool, own: Own) -> Call:
    """The call, with what the request's headers say of it.  own: what belongs to the plugins of its chain.

    Raises Denied where the caller's key does not open the chain or the model, and BadCall for a flag that is none.
    """
    exchange = exchange_of(request)
    exchange.model, exchange.route = asked.model, route
    call = Call(
        exchange.id,
        route,
        asked.model,
        ask,
        stream,
        exchange.caller.name,
        exchange.caller.key,
        exchange.caller.models,
        asked.about,
        asked.extra,
        {name: ", ".join(request.headers.getall(name)) for name in own.headers if name in request.headers},
        deadline=None if stream else deadline(request, exchange),
        trail=trail(request),
        observer=Listening(exchange=exchange) if stream else Heard(),
    )
    own.admit(call, exchange.caller)
    if asked.extra:
        check_flags(asked.extra, own.flags)
    return call


def check_flags(given: Mapping[str, JSON], flags: Collection[str]) -> None:
    """Here, and not by the plugins themselves: one that another answers for would not see them.  Raises BadCall."""
    for name in flags:
        if given.get(name) is not None and type(given[name]) is not bool:
            raise BadCall(f"Invalid type for '{name}': expected a boolean.", param=name, code="invalid_type")


def trail(request: web.BaseRequest) -> Mapping[str, str]:
    """What goes on to the upstream: nothing of the client's but the trace that it began."""
    exchange, headers = exchange_of(request), request.headers
    told = {REQUEST_ID: exchange.id, "Via": exchange.via}
    parent = headers.get("traceparent")
    if parent is not None and TRACE_PARENT.fullmatch(parent):
        told["traceparent"] = parent
        if TRACE_STATE.fullmatch(state := ",".join(headers.getall("tracestate", ()))):
            told["tracestate"] = state
    return told


def deadline(request: web.BaseRequest, exchange: Exchange) -> Deadline | None:
    """When a whole answer comes too late for its caller, who has waited since the request came, such as for its files
    to be read.  A stream's comments keep its caller waiting."""
    given = request.headers.get(READ_TIMEOUT)
    if given is None:
        return None
    try:
        patience = float(given)
    except ValueError:
        return None
    if not 0 < patience < 1e6:
        return None
    waited = time.perf_counter() - exchange.started
    return Deadline(asyncio.get_running_loop().time() - waited + patience - min(EARLIER, patience / 10))
