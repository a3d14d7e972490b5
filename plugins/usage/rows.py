"""What happened, as rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson
from msgspec.structs import astuple

from proxy.news import Attempt, CallEnded, Cost, FellBack
from proxy.types import JSON

LONGEST: Final = 200
"""Letters of a name that anybody may have made up."""
MOST: Final = 4096
"""Bytes of what a client says of its call."""
KNOWN: Final = 1000
UNPRICED: Final = astuple(Cost(""))
"""The columns of a cost, in the order of its fields."""


class CallRow(NamedTuple):
    """The columns of a call, in their order, without `id` and what a rating fills in."""

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
    """How many tries, their seconds in all, and when the last of them ended."""

    count: int = 0
    seconds: float = 0.0
    at: float = 0.0


class Smooth:
    """Tries that went well at once, as nearly all do: told together, since their calls have rows of their own."""

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
        """As rows; here they are forgotten."""
        found, self.found = self.found, {}
        return [smooth_row(*place, times) for place, times in found.items()]


class Names:
    """Which models answered under which names: what fails is told of the model that it would have reached.

    A name that never led anywhere is nobody's: else whoever asks for made-up models would fill the sums with them.
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
    return CallRow._make(columns)  # by place: by name a row of so many would take twice as long


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
    """What every database takes as text.  Names of owners are kept whole, or two of them could be one."""
    if text.isascii() and text.isprintable():
        return text[:longest]
    return text[:longest].encode(errors="replace").decode().replace("\0", "")


def tagged(tags: Mapping[str, str]) -> tuple[str, str, str]:
    """What has columns of its own."""
    arm = tags.get("arm") or tags.get("experiment", "")
    return clean(tags.get("conversation", "")), clean(arm), clean(tags.get("template", ""))


def said(about: Mapping[str, Any]) -> tuple[str, str]:
    """The client's own user, and its metadata as JSON."""
    user = about.get("user") or about.get("safety_identifier") or ""
    metadata = about.get("metadata")
    return clean(user if isinstance(user, str) else ""), written(metadata) if metadata else ""


def written(given: JSON) -> str:
    """As JSON; too much of it as nothing but that it was too much."""
    try:
        told = orjson.dumps(given, default=dict).decode()
    except (TypeError, ValueError):  # deeper, or of other letters, than JSON can be written
        return ""
    return told if len(told) <= MOST else '{"(too long)":true}'
