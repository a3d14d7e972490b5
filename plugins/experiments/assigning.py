"""Which unit gets which variant: a pure function, so that all processes agree without any lookup.

The experiment's salt and the unit are hashed to a number in [0, 2^64).  Each variant has an interval of that range in
proportion to its weight; integer arithmetic leaves no gaps between them.  Whether a unit takes part at all is a second,
independent hash, so raising `traffic` moves no unit from one variant to another.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from plugins.experiments.definition import Definition, Unit, Variant
from proxy.types import JSON, Call

WHOLE: Final = 2**64
BUCKETS: Final = 1000
"""Rows shared by the units that have no row of their own.  Several units added up count as one unit."""
BUCKET: Final = "#"
BREAK: Final = "\x1f"
CONVERSATION: Final = "conversation"
HEADER: Final = "x-gemmapy-conversation"


def hash_point(*parts: str) -> int:
    """A hash of the parts, uniform in [0, 2^64)."""
    return int.from_bytes(sha256(BREAK.join(parts).encode(errors="replace")).digest()[:8], "big")


def takes_part(definition: Definition, salt: str, unit: str) -> bool:
    return definition.traffic >= 1 or hash_point("traffic", salt, unit) < definition.traffic * WHOLE


def variant_of(definition: Definition, salt: str, unit: str) -> Variant:
    weights = [one.weight for one in definition.variants]
    place, upto = hash_point("variant", salt, unit) * sum(weights), 0
    for variant, weight in zip(definition.variants, weights, strict=True):
        upto += weight * WHOLE
        if place < upto:
            return variant
    raise AssertionError("the weights cover everything")


@dataclass(frozen=True, slots=True)
class Subject:
    """What a variant is assigned to.  text: what is hashed.  owner: the caller it belongs to; "" if none."""

    text: str
    owner: str

    @property
    def key(self) -> str:
        """The key of its figures.  Single requests have no owner and share a fixed number of anonymous rows."""
        return sha256(self.text.encode(errors="replace")).hexdigest()[:32] if self.owner else bucket(self.text)


def bucket(text: str) -> str:
    return f"{BUCKET}{hash_point('bucket', text) % BUCKETS}"


def subject(kind: Unit, caller: str, name: str) -> Subject:
    """name: of the user or conversation, "" if the call names none; for a request, its id."""
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
    """The conversation named in the body or a header; not checked for existence or ownership."""
    given = call.extra.get(CONVERSATION)
    if isinstance(given, dict):
        given = given.get("id")
    return words(given) or call.headers.get(HEADER, "")
