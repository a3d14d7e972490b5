"""Events by which features inform each other without importing each other, through `host.announce` and `host.on`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from msgspec import Struct

from proxy.asks import JSON
from proxy.readiness import STOPPED

BROKEN_OFF: Final = ("client_left", STOPPED)
"""Error codes of calls that were abandoned, which is not a fault of the upstream."""


class Attempt(Struct, frozen=True, gc=False):
    """One try of a call has ended.

    model, upstream: which were asked; upstream is "" if unknown, as for some failed tries.
    number: counts the tries of one model, from 1.
    error: its code, "" on success, one of BROKEN_OFF if the try was abandoned.
    meter: the call's `meter`, "" if it is not measured.
    """

    call: str
    caller: str
    route: str
    model: str
    upstream: str
    number: int
    error: str
    seconds: float
    meter: str = ""


@dataclass(frozen=True, slots=True)
class FellBack:
    """A call was passed to another model or upstream after a failure.

    error: the code of that failure.  meter: as in an Attempt.
    """

    call: str
    caller: str
    asked: str
    model: str
    error: str
    meter: str = ""


class Cost(Struct, frozen=True, gc=False):
    """What a call cost.  Money in billionths of the currency's unit, so that sums are exact; None means unknown.

    currency: such as `USD`.
    amount: by the price of its model; 0 for a cached answer.  prompt: the prompt's part of it.
    saved: what was saved by the cache.
    cloud: what the same would cost at the cloud service that it is compared with.
    energy_mj: electrical energy in thousandths of a joule, from the times that the upstream reported.
    power: what this energy costs.
    """

    currency: str
    amount: int | None = None
    prompt: int | None = None
    saved: int = 0
    cloud: int | None = None
    energy_mj: int | None = None
    power: int | None = None


class Rejected(Struct, frozen=True, gc=False):
    """Tokens and times of an answer that was not delivered: it failed a check, or was broken off before the check.

    The fields are as in CallEnded.  model, upstream: which generated it; upstream is "" if unknown.
    """

    model: str
    upstream: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    thinking_tokens: int
    load_ns: int
    prompt_ns: int
    eval_ns: int


KEPT: Final = ("hit", "shared")
"""Values of `CallEnded.cache` for answers that needed no generation of their own."""


class CallEnded(Struct, frozen=True, gc=False):
    """A call is over: answered, failed, or abandoned.  Times in ns, `at` in seconds since 1970.

    asked, model: the model that was asked for and the one that answered; model and upstream are "" if none did.
    prompt_tokens, completion_tokens, cached_tokens, thinking_tokens: None if unknown and not even estimated.
    estimated: names of those counts that the upstream did not report.
    queue_ns: waiting for a host; load_ns, prompt_ns, eval_ns: as the upstream reported; attempts: how often it was
        asked.  All of these are 0 for an answer from the cache, or shared with another call's generation.
    kept_tokens: prompt tokens of embeddings that came from the cache; they are part of prompt_tokens and cost nothing.
    first_ns: until the first event, None if there was none.
    cache: `hit`, `miss`, `shared`, `bypass`, or "" without a cache.
    finish: `stop`, `length`, `tool_calls`, "" if the answer is not complete.
    cache_key: the answer's key in the cache, even if the answer was not stored.
    error: code of the failure; `client_left` if the client did not wait for the answer, `server_stopped` if this server
        did not; else "".
    about, tags: as on the call.
    meter: the call's own, as inner plugins see it; unique.
    rejected: answers that were not delivered; the counts and times include theirs.
    """

    id: str
    at: float
    caller: str
    key: str
    route: str
    stream: bool
    asked: str
    model: str = ""
    upstream: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    thinking_tokens: int | None = None
    estimated: tuple[str, ...] = ()
    queue_ns: int = 0
    load_ns: int = 0
    prompt_ns: int = 0
    eval_ns: int = 0
    first_ns: int | None = None
    total_ns: int = 0
    cache: str = ""
    attempts: int = 0
    fallback: str = ""
    finish: str = ""
    error: str = ""
    cost: Cost | None = None
    about: Mapping[str, object] = {}
    tags: Mapping[str, str] = {}
    cache_key: str = ""
    meter: str = ""
    kept_tokens: int = 0
    rejected: tuple[Rejected, ...] = ()


@dataclass(frozen=True, slots=True)
class Rated:
    """A caller has rated an answer.  cache_key: of the call, "" without a cache."""

    call: str
    caller: str
    rating: Literal["up", "down", "none"]
    cache_key: str = ""


@dataclass(frozen=True, slots=True)
class AttemptsAsked:
    """A request for statistics of past tries.  A feature that records tries appends a function to `answers`.

    hours: how far back.  Each function gives the answer of `/api/retry/stats`; it may raise Busy.
    """

    hours: float
    answers: list[Callable[[], Awaitable[dict[str, JSON]]]] = field(default_factory=list)
