"""How log records are written: a line for people, or a JSON object a line."""

from __future__ import annotations

import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

import orjson

from proxy.config import Log

UNSAFE = re.compile(r"[^\x20-\x7e]")


class Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] | None = getattr(record, "told", None)
        stamp = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%S")
        if told is None:
            return f"{stamp} {record.levelname.lower()} {super().format(record)}"
        shown = " ".join(f"{name}={value}" for name, value in told.items() if value not in (None, "", "-"))
        return f"{stamp} {UNSAFE.sub('?', shown)}"  # a caller's words must not forge a line


class Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = getattr(record, "told", None) or {"message": record.getMessage()}
        stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": stamp, "level": record.levelname.lower(), "logger": record.name, **told}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def set_up(settings: Log) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if settings.format == "json" else Plain())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
