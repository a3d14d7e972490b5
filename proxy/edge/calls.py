"""Builds the Call that goes through a chain from a request that a dialect has parsed."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from aiohttp import web

from proxy.config import Config
from proxy.edge.body import check_notes
from proxy.edge.exchange import REQUEST_ID, Exchange, exchange_of
from proxy.errors import BadCall
from proxy.observer import ReportLog
from proxy.types import JSON, Ask, Call, Caller, Deadline

TRACE_PARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
TRACE_STATE: Final = re.compile(r"[\x20-\x7e]{1,512}")
OURS: Final = "x-gemmapy-"
"""Prefix of headers that have a meaning for this server only."""
READ_TIMEOUT: Final = "x-stainless-read-timeout"
"""Header with which OpenAI's SDKs send their read timeout, in seconds."""
EARLIER: Final = 1.0
"""Seconds before the client's read timeout at which the call fails, so that the SDK reads an error instead of retrying.
A tenth of the timeout if that is less."""


@dataclass(frozen=True, slots=True)
class ChainInputs:
    """A chain's permission check, and the parts of a request that its plugins declared.

    admit: raises Denied if the caller's key does not permit the chain or the model.  fields: names of fields in the
    body.  brings: those that add messages, so that the client's may be empty; also prefixes of model names that do so.
    flags: fields that are booleans.
    """

    admit: Callable[[Call, Caller], None]
    config: Config
    fields: Collection[str] = ()
    headers: Collection[str] = ()
    brings: Collection[str] = ()
    flags: Collection[str] = ()


class FactsObserver(ReportLog, eq=False, kw_only=True):
    """Passes facts that are known before a streamed answer begins to its exchange, for the headers."""

    exchange: Exchange

    def foretold(self, facts: Mapping[str, str]) -> None:
        self.exchange.facts = {**self.exchange.facts, **facts}


class ParsedRequest(Protocol):
    """What every dialect's parsed request has."""

    model: str
    about: dict[str, JSON]
    extra: dict[str, JSON]


def call_of(
    request: web.BaseRequest, route: str, asked: ParsedRequest, ask: Ask, stream: bool, own: ChainInputs
) -> Call:
    """The call, completed from the request's headers, for a caller who is permitted to make it.

    own: what the plugins of its chain declared.
    Raises Denied if the caller's key does not permit the chain or the model, BadCall if a flag is not a boolean,
    and with `params: strict` for a header with this server's prefix that no plugin reads.
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
        observer=FactsObserver(exchange=exchange) if stream else ReportLog(),
    )
    own.admit(call, exchange.caller)
    if ignored := ignored_headers(request, own.config, own.headers):
        check_notes(ignored, own.config.params)
        exchange.ignored = ignored
    if asked.extra:
        check_flags(asked.extra, own.flags)
    return call


def ignored_headers(request: web.BaseRequest, config: Config, read: Collection[str] = ()) -> dict[str, str]:
    """Notes on headers with this server's prefix that nobody reads, so that they have no effect."""
    names = "\n".join(request.headers).lower()  # most requests have no such header, and this is a quick way to see it
    if OURS not in names:
        return {}
    known = {*read, *config.identity_headers}
    return {name[:100]: "ignored" for name in names.split("\n") if name.startswith(OURS) and name not in known}


def check_flags(given: Mapping[str, JSON], flags: Collection[str]) -> None:
    """Raises BadCall if a plugin's flag is not a boolean.

    Not checked by the plugins themselves, because an outer plugin may answer before an inner one sees the call.
    """
    for name in flags:
        if given.get(name) is not None and type(given[name]) is not bool:
            raise BadCall(f"Invalid type for '{name}': expected a boolean.", param=name, code="invalid_type")


def trail(request: web.BaseRequest) -> Mapping[str, str]:
    """Headers for the upstream.  Of the client's own, only valid W3C trace context is passed on."""
    exchange, headers = exchange_of(request), request.headers
    told = {REQUEST_ID: exchange.id, "Via": exchange.via}
    parent = headers.get("traceparent")
    if parent is not None and TRACE_PARENT.fullmatch(parent):
        told["traceparent"] = parent
        if TRACE_STATE.fullmatch(state := ",".join(headers.getall("tracestate", ()))):
            told["tracestate"] = state
    return told


def deadline(request: web.BaseRequest, exchange: Exchange) -> Deadline | None:
    """The deadline for a whole answer by the client's read timeout, counted from the request's arrival; None if it sent
    no valid one.  Streams need no deadline, since their heartbeats keep the client from timing out."""
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
