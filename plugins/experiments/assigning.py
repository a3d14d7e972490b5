"""Who gets which variant: pure, so that every process says the same and nothing has to be looked up.

An experiment's salt and a unit are hashed to a number in [0, 2^64); variants have intervals of it by their weights, of
whole numbers and so without gaps.  Whether a unit takes part at all is another hash, so that more traffic moves nobody
from one variant to another.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from plugins.experiments.definition import Definition, Unit, Variant
from proxy.types import JSON, Call

WHOLE: Final = 2**64
BUCKETS: Final = 1000
"""Rows that units without one of their own share.  Several units added up are a unit like any other."""
BUCKET: Final = "#"
BREAK: Final = "\x1f"
CONVERSATION: Final = "conversation"
HEADER: Final = "x-gemmapy-conversation"


def point(*parts: str) -> int:
    """In [0, 2^64), evenly."""
    return int.from_bytes(sha256(BREAK.join(parts).encode(errors="replace")).digest()[:8], "big")


def takes_part(definition: Definition, salt: str, unit: str) -> bool:
    return definition.traffic >= 1 or point("traffic", salt, unit) < definition.traffic * WHOLE


def variant_of(definition: Definition, salt: str, unit: str) -> Variant:
    weights = [one.weight for one in definition.variants]
    place, upto = point("variant", salt, unit) * sum(weights), 0
    for variant, weight in zip(definition.variants, weights, strict=True):
        upto += weight * WHOLE
        if place < upto:
            return variant
    raise AssertionError("the weights cover everything")


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is dealt a variant.  text: what is hashed.  owner: whose it is, "" where it is nobody's."""

    text: str
    owner: str

    @property
    def key(self) -> str:
        """Under which its figures are kept: those of single requests together in so many rows, without a name."""
        return sha256(self.text.encode(errors="replace")).hexdigest()[:32] if self.owner else bucket(self.text)


def bucket(text: str) -> str:
    return f"{BUCKET}{point('bucket', text) % BUCKETS}"


def subject(kind: Unit, caller: str, name: str) -> Subject:
    """name: of the user or conversation, "" where there is none; of the request."""
    if kind == "request":
        return Subject(BREAK.join((kind, caller, name)), "")
    if kind == "caller" or not name:
        return Subject(BREAK.join(("caller", caller)), caller)
    return Subject(BREAK.join((kind, caller, name)), caller)


def subject_of(kind: Unit, call: Call) -> Subject:
    name = ""
    if kind == "request":
        name = call.id
    elif kind == "user":
        name = words(call.about.get("user")) or words(call.about.get("safety_identifier"))
    elif kind == "conversation":
        name = conversation_of(call)
    return subject(kind, call.caller, name)


def words(given: JSON) -> str:
    return given if type(given) is str else ""


def conversation_of(call: Call) -> str:
    """The one that the call names, in any of the ways that a chain may know; whether it is right is not ours to say."""
    given = call.extra.get(CONVERSATION)
    if isinstance(given, dict):
        given = given.get("id")
    return words(given) or call.headers.get(HEADER, "")
