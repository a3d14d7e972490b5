"""What features tell each other without knowing each other, through `host.announce` and `host.on`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from msgspec import Struct

from proxy.asks import JSON
from proxy.readiness import STOPPED

BROKEN_OFF: Final = ("client_left", STOPPED)
"""Codes of what nobody waited for any more."""


class Attempt(Struct, frozen=True, gc=False):
    """One try of a call has ended.

    model, upstream: which were asked; upstream "" where it is not known, as of a try that failed.
    number: counts from 1 over the tries of one model.  error: its code, "" where it went well; one of BROKEN_OFF where
        it was, for no fault of the upstream.
    meter: the call's `meter`, "" where nobody measures it.
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
    """A call went on to another model or upstream.

    error: the code of what the one before failed with.  meter: as of an Attempt.
    """

    call: str
    caller: str
    asked: str
    model: str
    error: str
    meter: str = ""


class Cost(Struct, frozen=True, gc=False):
    """What a call cost.  Money in billionths of the currency's unit, so that sums are exact; None is unknown.

    currency: such as `USD`.
    amount: by the price of its model; 0 where the answer was kept.  prompt: what of it the prompt took.
    saved: what it would have cost, had the answer not been kept.
    cloud: what the same would cost at the cloud service it is compared with.
    energy_mj: electrical energy in thousandths of a joule, by the times that the upstream told.
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
    """What an answer took of which nothing was given: it was not what was asked for, or broken off before that was
    known.  All of it as of a CallEnded.

    model, upstream: which made it; upstream "" where that is not known.
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
"""What a cache says of a call that had its answer without a generation of its own."""


class CallEnded(Struct, frozen=True, gc=False):
    """A call is over: answered, failed, cut or left by its client.  Times in ns, `at` in seconds since 1970.

    asked, model: the model that was asked for and the one that answered; model and upstream are "" where none did.
    prompt_tokens, completion_tokens, cached_tokens, thinking_tokens: None where nothing is known, not even roughly.
    estimated: names of those that the upstream did not tell.
    queue_ns: in line for a host; load_ns, prompt_ns, eval_ns: as the upstream told; attempts: how often it was asked.
        All of these are 0 where the answer was kept, or shared with the call that took them.
    kept_tokens: of the prompt's, those of embeddings that were kept, which are read by nobody and cost nothing.
    first_ns: until the first event, None where none came.
    cache: `hit`, `miss`, `shared`, `bypass`, or "" without a cache.
    finish: `stop`, `length`, `tool_calls`, "" where the answer is not complete.
    cache_key: under which the cache keeps the answer, or would.
    error: code of what it failed with, `client_left` where nobody waited for the answer, `server_stopped` where this
        server did not, else "".
    about, tags: as on the call.
    meter: the call's own, as inner plugins see it; no other call has it.
    rejected: answers that are not given; what they took is in all the counts and times.
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
    """A caller has said what an answer is worth.  cache_key: of the call, "" where there was no cache."""

    call: str
    caller: str
    rating: Literal["up", "down", "none"]
    cache_key: str = ""


@dataclass(frozen=True, slots=True)
class AttemptsAsked:
    """Somebody wants to tell of past tries.  Who keeps records of them adds a way to read those to `told`.

    hours: how far back.  Each of `told` gives what `/api/retry/stats` answers; it may raise Busy.
    """

    hours: float
    told: list[Callable[[], Awaitable[dict[str, JSON]]]] = field(default_factory=list)
