"""A stored answer, and how its document is split into columns and put together again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgspec
import orjson
from msgspec import Struct

from proxy.errors import ProxyError
from proxy.types import JSON, Event, Said

Document: TypeAlias = dict[str, JSON]

RESPONSE: Final = "response"
COMPLETION: Final = "chat.completion"
OUTPUT: Final[Mapping[str, str]] = {RESPONSE: "output", COMPLETION: "choices"}
"""The field of a document that holds the answer itself."""
RUNNING: Final = ("queued", "in_progress")
LOST: Final = 30.0
"""Seconds without a heartbeat of the process that generates an answer, after which the answer counts as lost."""


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """One row; `input` and `events` are empty if they were not selected."""

    id: str
    at: int
    kind: str
    status: str
    parent: str
    head: Document
    input: list[JSON]
    output: list[JSON]
    events: str
    beat: int | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> StoredAnswer:
        parts = {name: orjson.loads(row.get(name, "[]")) for name in ("head", "input", "output")}
        plain = {name: row[name] for name in ("id", "at", "kind", "status", "parent", "beat")}
        return cls(**plain, **parts, events=row.get("events", ""))

    @property
    def document(self) -> Document:
        return {**self.head, OUTPUT[self.kind]: self.output}

    @property
    def running(self) -> bool:
        return self.status in RUNNING

    def lost(self, now: float) -> bool:
        """Whether the process that generated it has died.  now: Unix seconds."""
        return self.running and (self.beat or 0) < micros(now - LOST)


def taken_apart(document: Mapping[str, JSON]) -> dict[str, Any]:
    """The columns of a document."""
    name = OUTPUT[document["object"]]
    head = {key: value for key, value in document.items() if key != name}
    return {
        "status": document.get("status", "completed"),
        "head": orjson.dumps(head).decode(),
        "output": orjson.dumps(document.get(name) or []).decode(),
    }


class Failed(Struct, frozen=True, tag=True, array_like=True):
    """The error that ended an answer, as it is stored after the events."""

    message: str
    code: str
    param: str | None
    status: int


READER: Final = msgspec.json.Decoder(list[Said | Failed])
WRITER: Final = msgspec.json.Encoder(enc_hook=dict)
"""`enc_hook` also writes mappings that are not dicts."""


def events_of(said: Sequence[Event], error: ProxyError | None = None) -> str:
    """The events as they are stored, followed by the error that ended the answer, if any."""
    ended = () if error is None else (Failed(str(error), error.code or error.kind, error.param, error.status),)
    return WRITER.encode((*said, *ended)).decode()


def said_in(events: str) -> tuple[list[Event], ProxyError | None]:
    """The events and the error that were given to `events_of`."""
    found, error = READER.decode(events), None
    if found and isinstance(failed := found[-1], Failed):
        error = ProxyError(failed.message, code=failed.code, param=failed.param)
        error.status = failed.status
    return [one for one in found if not isinstance(one, Failed)], error


def weight(columns: Mapping[str, Any]) -> int:
    """Approximate size of a row in bytes."""
    return sum(octets(columns[name]) for name in ("head", "input", "output", "events") if name in columns)


def octets(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def labels_of(metadata: JSON) -> Iterable[tuple[str, str]]:
    """Metadata as it is stored for searching."""
    return {clean(name): clean(value) for name, value in (metadata or {}).items()}.items()


def clean(text: str) -> str:
    """Without NUL characters, which PostgreSQL rejects."""
    return text.replace("\0", "")


def micros(seconds: float) -> int:
    return int(seconds * 1e6)
