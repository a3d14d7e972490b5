"""The state of one request while it is answered, from which its response headers and log line are made."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from aiohttp import web

from proxy.asks import Spelling, unchanged
from proxy.errors import ProxyError
from proxy.types import JSON, Caller, Usage
from proxy.wire.ids import timely_id
from proxy.wire.openai_answer import ChatStyle
from proxy.wire.openai_errors import error_body

REQUEST_ID: Final = "X-Request-Id"
UNKNOWN: Final = Caller("-", "public")
PROCESSING: Final = "openai-processing-ms"
RATES: Final = frozenset(
    f"ratelimit-{told}-{what}" for told in ("limit", "remaining", "reset") for what in ("requests", "tokens")
)
"""Facts about rate limits, which are sent as headers but not logged."""
STANDARD: Final = {"age": "Age", **{name: f"x-{name}" for name in RATES}}
"""Facts whose header is not `x-gemmapy-…`, with its name."""
SANE: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
LONGEST: Final = 2000
"""Maximum length of a header's value, in characters."""
UNSAFE: Final = re.compile(r"[^\x20-\x7e]")


@dataclass(slots=True, eq=False)
class Exchange:
    """headers: sent with every response to this request.  Times are seconds of `perf_counter`."""

    id: str
    headers: dict[str, str]
    method: str
    path: str
    started: float = field(default_factory=time.perf_counter)
    client: str = ""
    """The client's address; from `X-Forwarded-For` if a trusted gateway sent it."""
    scheme: str = "http"
    via: str = ""
    """The header `Via` for the upstream: the proxies so far, and this one."""
    caller: Caller = UNKNOWN
    model: str = ""
    route: str = ""
    status: int = 0
    error: str = ""
    first: float | None = None
    ended: float = 0.0
    usage: Usage | None = None
    errors: Callable[[ProxyError], bytes] = error_body
    cut: Callable[[ProxyError], None] | None = None
    """Ends a running stream with an error event; None while there is no stream."""
    facts: Mapping[str, str] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Notes on request headers that have no effect."""
    spelled: Spelling = unchanged
    """Translates the name of a field in OpenAI's chat API into its name in this request's dialect."""
    style: Callable[[str], ChatStyle] = ChatStyle
    """Makes, from a model's name, the style of an answer, if a plugin's own endpoint calls the chain `chat`."""

    @classmethod
    def of(cls, request: web.BaseRequest) -> Exchange:
        """Create and register a request's exchange.  A valid request id from the client or a gateway is kept."""
        given = request.headers.get(REQUEST_ID, "")
        made = given if SANE.fullmatch(given) else timely_id("req_")
        exchange = cls(made, {REQUEST_ID: made, "Server": "gemmapy-proxy"}, request.method, request.rel_url.raw_path)
        request[KEY] = exchange
        return exchange

    def answered(self, facts: Mapping[str, str]) -> None:
        """Record that the first event has arrived."""
        self.first = time.perf_counter()
        self.facts = facts

    def processing(self) -> str:
        """Milliseconds since the request arrived, for the header `openai-processing-ms`."""
        return str(int((time.perf_counter() - self.started) * 1000))

    def log_fields(self) -> dict[str, JSON]:
        """The fields of this request's log line.  They never contain a body or a key."""
        told: dict[str, JSON] = {"id": self.id, "client": self.client, "caller": self.caller.name}
        if self.scheme != "http":
            told["scheme"] = self.scheme
        told["method"], told["path"] = self.method, self.path[:500]
        told["status"] = self.status
        if self.route:
            told["route"], told["model"] = self.route, self.model[:200]
        if self.error:
            told["error"] = self.error
        if self.usage is not None:
            told["tokens_in"], told["tokens_out"] = self.usage.prompt_tokens, self.usage.completion_tokens
        if self.first is not None:
            told["first_ms"] = int((self.first - self.started) * 10_000) / 10
        told["total_ms"] = int((self.ended - self.started) * 10_000) / 10
        facts = self.facts
        told.update(facts if RATES.isdisjoint(facts) else {name: facts[name] for name in facts if name not in RATES})
        return told

    def noted(self, notes: Mapping[str, str]) -> str:
        """What was done with fields that were not simply honoured, as `name=fate, …`."""
        return header_safe(", ".join(f"{name}={fate}" for name, fate in notes.items()))

    def telling(self, notes: Mapping[str, str]) -> dict[str, str]:
        """The headers of an answer: those of every response, the facts, and the notes about fields."""
        headers = {"Content-Type": "application/json", **self.headers, PROCESSING: self.processing()}
        facts = self.facts
        if not is_safe("".join(facts.values())):
            facts = {name: header_safe(value) for name, value in facts.items()}
        for name, value in facts.items():
            if value:
                headers[header_of(name)] = value
        if self.spelled is not unchanged and (inner := self.facts.get("params")):
            headers["x-gemmapy-params"] = header_safe(self.respelled(inner))
        if notes or self.ignored:
            told = self.noted({**self.ignored, **notes})
            inner = headers.get("x-gemmapy-params")
            headers["x-gemmapy-params"] = header_safe(f"{told}, {inner}" if inner else told)
        return headers

    def respelled(self, told: str) -> str:
        """Notes from the upstream, as `name=fate, …`, with the names of the request's dialect."""
        parts = (one.rpartition("=") for one in told.split(", "))
        return ", ".join(dict.fromkeys(f"{self.spelled(name)}={fate}" for name, _, fate in parts))


@lru_cache(256)
def header_of(fact: str) -> str:
    return STANDARD.get(fact) or f"x-gemmapy-{fact}"


def header_safe(text: str) -> str:
    """A text made valid as a header's value: it may contain names that the caller chose, even with line breaks."""
    return text if is_safe(text) else UNSAFE.sub("?", text)[:LONGEST]


def is_safe(text: str) -> bool:
    return text.isascii() and text.isprintable() and len(text) < LONGEST


CLIENT_LEFT: Final = 499
"""nginx's status for a client that closed the connection before it was answered."""
KEY: Final = web.RequestKey("exchange", Exchange)


def exchange_of(request: web.BaseRequest) -> Exchange:
    return request[KEY]
