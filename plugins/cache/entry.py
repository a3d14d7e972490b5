"""An answer as it is kept: its events, what was told of it, and what it took."""

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

from proxy.stores.keyvalue import Kept
from proxy.types import Event, Finish, Said, Text, Usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PLAIN: Final = b"p"
SMALL: Final = b"z"
COMPRESSED: Final = 4096
"""Bytes above which an entry is compressed."""
LARGEST: Final = 256 * 1024 * 1024
"""Bytes that an entry may have once it is inflated."""
PIECES: Final = re.compile(r"\s*\S+\s*?(?=\s|$)|\s+")
LONG: Final = 32
"""Characters above which a text is replayed in pieces: it was not one token."""
VECTOR: Final = struct.Struct("!cII")
"""Before the floats of one embedding: a mark, the tokens of its text, plus one if they are known, and the bytes of what
was told of it, which come next."""
MARK: Final = b"w"
GOOD: Final = frozenset({"stop", "tool_calls"})
"""Why an answer ended that is worth keeping; the other ones have reached their limit."""
WITH_LENGTH: Final = GOOD | {"length"}
FACTS: Final = ("model", "upstream", "digest", "params")
"""What was told of an answer that is told again with its copy."""


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
        """None for what is malformed, or was kept by another version."""
        try:
            found = READER.decode(packed[1:] if packed[:1] == PLAIN else inflated(packed))
        except (ValueError, msgspec.MsgspecError, RecursionError, zlib.error):
            return None
        return found if found.facts.keys() <= set(FACTS) and complete(found.events, length=True) else None


WRITER: Final = msgspec.json.Encoder(enc_hook=dict)
"""Mappings of another type are written, too."""
READER: Final = msgspec.json.Decoder(Entry)


def unpacked(packed: bytes) -> Entry | None:
    """The same; what is small and was read a moment ago is not read again."""
    return _remembered(packed) if len(packed) <= COMPRESSED else Entry.unpack(packed)


_remembered = lru_cache(512)(Entry.unpack)


def of_kept(kept: Kept | None) -> tuple[Entry, float] | None:
    """The answer, and when it was given; None for what is malformed, too."""
    found = None if kept is None else unpacked(kept.value)
    return None if kept is None or found is None else (found, kept.born)


def inflated(packed: bytes) -> bytes:
    """Raises ValueError or zlib.error."""
    if packed[:1] != SMALL:
        raise ValueError("neither plain nor compressed")
    stream = zlib.decompressobj()
    body = stream.decompress(packed[1:], LARGEST)
    if not stream.eof:
        raise ValueError("cut off, or larger than anything that is kept")
    return body


def told(facts: Mapping[str, str]) -> Mapping[str, str]:
    """Those of an answer's facts that its copies tell, too."""
    return _told(*map(facts.get, FACTS))


@lru_cache(256)
def _told(*values: str | None) -> Mapping[str, str]:
    """The same ones for many answers."""
    return {name: value for name, value in zip(FACTS, values, strict=True) if value is not None}


def is_told(facts: object) -> bool:
    """Whether these are such facts."""
    return isinstance(facts, dict) and facts.keys() <= set(FACTS) and all(type(one) is str for one in facts.values())


def is_of(facts: Mapping[str, str], stamp: str) -> bool:
    """Whether the model of this stamp has answered: not another in its place, nor other weights by its name, which one
    of an upstream's hosts may have."""
    return "fallback" not in facts and facts.get("digest", "") in stamp


def complete(events: Iterable[Event], length: bool) -> bool:
    """Whether these events are an answer worth keeping.  length: also one that was cut by its limit."""
    good = WITH_LENGTH if length else GOOD
    ends = [event.reason in good for event in events if type(event) is Finish]
    return bool(ends) and all(ends)


def usage_of(events: Iterable[Event]) -> Usage | None:
    return next((event for event in events if isinstance(event, Usage)), None)


def in_pieces(events: Iterable[Event]) -> Iterable[Event]:
    """For a stream: a text that came whole is told word by word, as its client expects."""
    for event in events:
        if isinstance(event, Text) and len(event.text) > LONG and not event.logprobs:
            yield from (Text(piece, event.choice) for piece in PIECES.findall(event.text))
        else:
            yield event


# --- embeddings: one entry a text --------------------------------------------------------------------


def pack_vector(vector: NDArray[np.float32], tokens: int | None, facts: Mapping[str, str]) -> bytes:
    told = orjson.dumps(facts)
    return VECTOR.pack(MARK, 0 if tokens is None else tokens + 1, len(told)) + told + vector.astype("<f4").tobytes()


def unpack_vector(packed: bytes) -> tuple[NDArray[np.float32], int | None, Mapping[str, str]] | None:
    """None for what is malformed, or was kept by another version."""
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
    return (vector, tokens - 1 if tokens else None, facts) if is_told(facts) and np.isfinite(vector).all() else None


def shared_out(total: int | None, texts: Sequence[str]) -> list[int | None]:
    """Tokens of each text, by its share of the characters; they add up to the total."""
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
