"""Calls and attempts as database rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson
from msgspec.structs import astuple

from proxy.announcements import Attempt, CallEnded, Cost, FellBack
from proxy.types import JSON

LONGEST: Final = 200
"""Maximum length of a name that a client may choose, in characters."""
MOST: Final = 4096
"""Maximum length of a client's own data about its call, in characters."""
KNOWN: Final = 1000
UNPRICED: Final = astuple(Cost(""))
"""The columns of a cost, if there was no price."""


class CallRow(NamedTuple):
    """The columns of a call in order, except `id` and those of a rating."""

    at: int
    call: str
    caller: str
    key_id: str
    route: str
    stream: int
    asked: str
    model: str
    upstream: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    thinking_tokens: int | None
    estimated: str
    queue_ns: int
    load_ns: int
    prompt_ns: int
    eval_ns: int
    first_ns: int | None
    total_ns: int
    cache: str
    attempts: int
    fallback: str
    finish: str
    error: str
    currency: str
    cost: int | None
    prompt_cost: int | None
    saved: int
    cloud: int | None
    energy_mj: int | None
    power: int | None
    conversation: str
    arm: str
    template: str
    client_user: str
    metadata: str
    tags: str
    cache_key: str


class AttemptRow(NamedTuple):
    at: int
    call: str
    caller: str
    route: str
    model: str
    upstream: str
    number: int
    error: str
    micros: int
    times: int = 1


@dataclass(slots=True)
class Times:
    """The number of attempts, their total seconds, and when the last of them ended."""

    count: int = 0
    seconds: float = 0.0
    at: float = 0.0


class FirstAttempts:
    """Successful first attempts, which nearly all are: counted together, because their calls have rows of their own."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str, str, str], Times] = {}
        """By caller, route, model and upstream."""

    def add(self, one: Attempt, now: float) -> None:
        place = one.caller, one.route, one.model, one.upstream
        if (times := self.found.get(place)) is None:
            times = self.found[place] = Times()
        times.count += 1
        times.seconds += one.seconds
        times.at = now

    def __len__(self) -> int:
        return len(self.found)

    def taken(self) -> list[AttemptRow]:
        """All of them as rows; the counts start anew."""
        found, self.found = self.found, {}
        return [smooth_row(*place, times) for place, times in found.items()]


class Names:
    """Which models answered under which names, so that a failed call is recorded for the model it would have reached.

    A name that never led to a model is recorded as "": otherwise requests for made-up models would fill the sums.
    """

    def __init__(self) -> None:
        self.models: OrderedDict[str, str] = OrderedDict()

    def of(self, ended: CallEnded) -> str:
        if not ended.model:
            return self.models.get(ended.asked, "")
        if self.models.get(ended.asked) != ended.model and not ended.fallback:
            self.models[ended.asked] = ended.model
            if len(self.models) > KNOWN:
                self.models.popitem(last=False)
        return ended.model


def call_row(ended: CallEnded, model: str) -> CallRow:
    user, metadata = said(ended.about) if ended.about else ("", "")
    tags = ended.tags
    columns = (
        int(ended.at * 1e6),
        ended.id[:LONGEST],
        clean(ended.caller, None),
        clean(ended.key, None),
        ended.route,
        int(ended.stream),
        clean(ended.asked),
        clean(model),
        clean(ended.upstream),
        ended.prompt_tokens,
        ended.completion_tokens,
        ended.cached_tokens,
        ended.thinking_tokens,
        " ".join(ended.estimated),
        ended.queue_ns,
        ended.load_ns,
        ended.prompt_ns,
        ended.eval_ns,
        ended.first_ns,
        ended.total_ns,
        ended.cache,
        ended.attempts,
        clean(ended.fallback),
        ended.finish,
        clean(ended.error),
        *(UNPRICED if ended.cost is None else astuple(ended.cost)),
        *(tagged(tags) if tags else ("", "", "")),
        user,
        metadata,
        written(tags) if tags else "",
        ended.cache_key,
    )
    return CallRow._make(columns)  # positional: keyword arguments would take twice as long for so many columns


def attempt_row(one: Attempt, now: float) -> AttemptRow:
    at, micros = int((now - one.seconds) * 1e6), int(one.seconds * 1e6)
    names = one.call[:LONGEST], clean(one.caller, None), one.route, clean(one.model), clean(one.upstream)
    return AttemptRow(at, *names, one.number, clean(one.error), micros)


def smooth_row(caller: str, route: str, model: str, upstream: str, times: Times) -> AttemptRow:
    names = clean(caller, None), route, clean(model), clean(upstream)
    return AttemptRow(int(times.at * 1e6), "", *names, 1, "", int(times.seconds * 1e6), times.count)


def fallback_row(one: FellBack, now: float) -> AttemptRow:
    return AttemptRow(
        int(now * 1e6), one.call[:LONGEST], clean(one.caller, None), "", clean(one.model), "", 0, clean(one.error), 0
    )


@lru_cache(4096)
def clean(text: str, longest: int | None = LONGEST) -> str:
    """Text that every database accepts.  Callers' names are not shortened, or two of them could become the same."""
    if text.isascii() and text.isprintable():
        return text[:longest]
    return text[:longest].encode(errors="replace").decode().replace("\0", "")


def tagged(tags: Mapping[str, str]) -> tuple[str, str, str]:
    """The tags that have columns of their own."""
    arm = tags.get("arm") or tags.get("experiment", "")
    return clean(tags.get("conversation", "")), clean(arm), clean(tags.get("template", ""))


def said(about: Mapping[str, Any]) -> tuple[str, str]:
    """The client's own user id, and its metadata as JSON."""
    user = about.get("user") or about.get("safety_identifier") or ""
    metadata = about.get("metadata")
    return clean(user if isinstance(user, str) else ""), written(metadata) if metadata else ""


def written(given: JSON) -> str:
    """As JSON; a placeholder if that is too long."""
    try:
        told = orjson.dumps(given, default=dict).decode()
    except (TypeError, ValueError):  # too deeply nested, or with lone surrogates
        return ""
    return told if len(told) <= MOST else '{"(too long)":true}'
