"""Log lines, as text or as one JSON object per line."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

import orjson

from proxy.config import Log
from proxy.edge.exchange import Exchange
from proxy.live import PROBES
from proxy.types import JSON

UNSAFE: Final = re.compile(r"[^\x20-\x7e]")
AMBIGUOUS: Final = re.compile(r"[\s=\"]")
FLUSH: Final = 0.1
"""Seconds that a request's line may wait, so that several are written together."""
MOST: Final = 500
"""Maximum number of lines that wait."""
WHOLE: Final = 4096
"""Bytes that a process can write to a pipe atomically, without mixing with other processes' lines: POSIX guarantees
512, Linux this."""
NOTHING: Final[Mapping[str, JSON]] = {}


class Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{stamp(int(record.created))} {record.levelname.lower()} {super().format(record)}"


class Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def set_up(settings: Log) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if settings.format == "json" else Plain())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    if settings.level != "debug":  # at every start, Alembic logs each of its steps
        logging.getLogger("alembic").setLevel(logging.WARNING)


def stamp(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


class RequestLog:
    """Writes one line per request, in batches several times a second.

    A line through `logging` costs a fifth of a request.  Formatting lines in a batch takes a third of the time of
    formatting each after its request, when the processor's cache holds other code and data.
    """

    def __init__(self, settings: Log, write: Callable[[bytes], object], also: Mapping[str, JSON] = NOTHING) -> None:
        """also: fields to add to every line."""
        self.formatted = json_line if settings.format == "json" else plain_line
        self.write = write
        self.also = also
        self.quiet = () if settings.level == "debug" else tuple(PROBES)
        """Paths (their ends) of health probes, which come every few seconds: logged only if they fail."""
        self.ended: list[Exchange] = []

    def __call__(self, exchange: Exchange) -> None:
        if exchange.status == 200 and exchange.path.endswith(self.quiet):
            return
        if not self.ended:
            asyncio.get_running_loop().call_later(FLUSH, self.flush)
        self.ended.append(exchange)
        if len(self.ended) >= MOST:
            self.flush()

    def flush(self) -> None:
        ended, self.ended = self.ended, []
        if ended:
            when = stamp(int(time.time()))
            self.write(b"".join([self.formatted(when, {**exchange.log_fields(), **self.also}) for exchange in ended]))


def plain_line(when: str, told: Mapping[str, JSON]) -> bytes:
    shown = " ".join([f"{name}={value}" for name, value in told.items()])
    if not (shown.count("=") == len(told) == shown.count(" ") + 1 and '"' not in shown and is_plain(shown)):
        words = [f"{name}={word(value) if type(value) is str else value}" for name, value in told.items()]
        shown = " ".join(words)
        if not is_plain(shown):
            shown = UNSAFE.sub("?", shown)  # so that callers cannot forge log lines
    return f"{when} {shown}\n".encode()


def is_plain(shown: str) -> bool:
    return shown.isascii() and shown.isprintable()


def word(value: str) -> str:
    """The value, quoted if it could be mistaken for several."""
    return value if value.isascii() and not AMBIGUOUS.search(value) else json.dumps(value)


def json_line(when: str, told: Mapping[str, JSON]) -> bytes:
    line = {"time": f"{when.replace(' ', 'T')}Z", "level": "info", **told}
    try:
        return orjson.dumps(line) + b"\n"
    except TypeError:  # a path with invalid UTF-8, which the standard library can write
        return json.dumps(line).encode() + b"\n"


def to_stderr(lines: bytes) -> None:
    for piece in pieces(lines):
        sys.stderr.buffer.write(piece)
        sys.stderr.buffer.flush()


def pieces(lines: bytes) -> Iterator[bytes]:
    """The text split into groups of whole lines, each small enough to be written atomically; a longer line is alone."""
    begun = 0
    while len(lines) - begun > WHOLE:
        end = lines.rfind(b"\n", begun, begun + WHOLE) + 1 or lines.find(b"\n", begun) + 1 or len(lines)
        yield lines[begun:end]
        begun = end
    yield lines[begun:]
