"""A cached answer in its stored form: events, facts and duration."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec
import orjson
from msgspec import Struct

from proxy.stores.keyvalue import StoredValue
from proxy.types import Event, Finish, Said, Text, Usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PLAIN: Final = b"p"
SMALL: Final = b"z"
COMPRESSED: Final = 4096
"""Bytes above which an entry is compressed."""
LARGEST: Final = 256 * 1024 * 1024
"""Maximum bytes of an entry after decompression."""
PIECES: Final = re.compile(r"\s*\S+\s*?(?=\s|$)|\s+")
LONG: Final = 32
"""Characters above which a text is replayed in pieces: it was more than one token."""
VECTOR: Final = struct.Struct("!cII")
"""Header before the floats of an embedding: a mark; the tokens of its text plus one, or 0 if unknown; and the length in
bytes of its facts, which come next."""
MARK: Final = b"w"
GOOD: Final = frozenset({"stop", "tool_calls"})
"""Finish reasons of complete answers."""
WITH_LENGTH: Final = GOOD | {"length"}
FACTS: Final = ("model", "upstream", "digest", "params")
"""The facts of a reply that are stored, and repeated with the cached copy."""


class Entry(Struct, frozen=True, array_like=True):
    """facts: some of `FACTS`.  seconds: how long the answer took when it was generated."""

    events: Sequence[Said]
    facts: Mapping[str, str]
    seconds: float

    def pack(self) -> bytes:
        body = WRITER.encode(self)
        return PLAIN + body if len(body) <= COMPRESSED else SMALL + zlib.compress(body, 1)

    @classmethod
    def unpack(cls, packed: bytes) -> Entry | None:
        """None if it is malformed or was written by an incompatible version."""
        try:
            found = READER.decode(packed[1:] if packed[:1] == PLAIN else inflated(packed))
        except (ValueError, msgspec.MsgspecError, RecursionError, zlib.error):
            return None
        return found if found.facts.keys() <= set(FACTS) and complete(found.events, length=True) else None


WRITER: Final = msgspec.json.Encoder(enc_hook=dict)
"""`enc_hook` converts mappings that are not dicts."""
READER: Final = msgspec.json.Decoder(Entry)


def unpacked(packed: bytes) -> Entry | None:
    """`Entry.unpack`, with small entries remembered."""
    return _remembered(packed) if len(packed) <= COMPRESSED else Entry.unpack(packed)


_remembered = lru_cache(512)(Entry.unpack)


def of_kept(kept: StoredValue | None) -> tuple[Entry, float] | None:
    """The answer and when it was given, in Unix seconds; None if there is none or it is malformed."""
    found = None if kept is None else unpacked(kept.value)
    return None if kept is None or found is None else (found, kept.born)


def inflated(packed: bytes) -> bytes:
    """The decompressed bytes.  Raises ValueError or zlib.error."""
    if packed[:1] != SMALL:
        raise ValueError("neither plain nor compressed")
    stream = zlib.decompressobj()
    body = stream.decompress(packed[1:], LARGEST)
    if not stream.eof:
        raise ValueError("cut off, or larger than anything that is kept")
    return body


def stored_facts(facts: Mapping[str, str]) -> Mapping[str, str]:
    """The facts of a reply that are stored with its copy."""
    return _stored_facts(*map(facts.get, FACTS))


@lru_cache(256)
def _stored_facts(*values: str | None) -> Mapping[str, str]:
    """Cached, since many answers have the same facts."""
    return {name: value for name, value in zip(FACTS, values, strict=True) if value is not None}


def are_stored_facts(facts: object) -> bool:
    """Whether these are valid stored facts."""
    return isinstance(facts, dict) and facts.keys() <= set(FACTS) and all(type(one) is str for one in facts.values())


def is_of(facts: Mapping[str, str], stamp: str) -> bool:
    """Whether the model with this stamp has answered: not a fallback, nor other weights under the same name, which one
    of an upstream's hosts may have."""
    return "fallback" not in facts and facts.get("digest", "") in stamp


def complete(events: Iterable[Event], length: bool) -> bool:
    """Whether these events are a complete answer.  length: whether one that ended at its token limit counts, too."""
    good = WITH_LENGTH if length else GOOD
    ends = [event.reason in good for event in events if type(event) is Finish]
    return bool(ends) and all(ends)


def usage_of(events: Iterable[Event]) -> Usage | None:
    return next((event for event in events if isinstance(event, Usage)), None)


def in_pieces(events: Iterable[Event]) -> Iterable[Event]:
    """The events for a stream: a long text is split into words, as a streaming client expects."""
    for event in events:
        if isinstance(event, Text) and len(event.text) > LONG and not event.logprobs:
            yield from (Text(piece, event.choice) for piece in PIECES.findall(event.text))
        else:
            yield event


# --- embeddings: one entry per text ------------------------------------------------------------------


def pack_vector(vector: NDArray[np.float32], tokens: int | None, facts: Mapping[str, str]) -> bytes:
    told = orjson.dumps(facts)
    return VECTOR.pack(MARK, 0 if tokens is None else tokens + 1, len(told)) + told + vector.astype("<f4").tobytes()


def unpack_vector(packed: bytes) -> tuple[NDArray[np.float32], int | None, Mapping[str, str]] | None:
    """Vector, tokens and facts; None if it is malformed or was written by an incompatible version."""
    import numpy as np

    if len(packed) <= VECTOR.size or packed[:1] != MARK:
        return None
    _, tokens, length = VECTOR.unpack_from(packed)
    begin = VECTOR.size + length
    if len(packed) <= begin or (len(packed) - begin) % 4:
        return None
    try:
        facts = orjson.loads(packed[VECTOR.size : begin])
    except ValueError:
        return None
    vector = np.frombuffer(packed, "<f4", offset=begin)
    return (
        (vector, tokens - 1 if tokens else None, facts)
        if are_stored_facts(facts) and np.isfinite(vector).all()
        else None
    )


def shared_out(total: int | None, texts: Sequence[str]) -> list[int | None]:
    """The tokens of each text, estimated by its share of the characters; they add up to the total."""
    if total is None:
        return [None] * len(texts)
    lengths = [len(text) + 1 for text in texts]
    ends, all_of_them = 0, sum(lengths)
    shares: list[int | None] = []
    before = 0
    for length in lengths:
        ends += length
        upto = total * ends // all_of_them
        shares.append(upto - before)
        before = upto
    return shares
