"""Reads and writes JSON, times and durations like Go's standard library."""

import json
import math
import re
import time
from datetime import UTC, datetime
from typing import Any

import orjson

from .refusals import Refused

UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
PART = re.compile(r"(\d+\.?\d*|\.\d+)([^\d.]*)")
# Go escapes these so that JSON can be embedded in HTML.  In JSON, the bytes only occur in strings.
ESCAPES = (
    (b"<", b"\\u003c"),
    (b">", b"\\u003e"),
    (b"&", b"\\u0026"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)
COMPLAINTS = {
    "Expecting value": "looking for beginning of value",
    "Expecting property name": "looking for beginning of object key string",
    "Illegal trailing comma": "looking for beginning of object key string",
    "Expecting ':'": "after object key",
    "Expecting ','": "after object key:value pair",
    "Invalid control character": "in string literal",
    "Invalid \\escape": "in string escape code",
}


def quoted(text: str) -> str:
    """Approximately Go's %q."""
    return json.dumps(text, ensure_ascii=False)


def dumps(value: Any) -> bytes:
    line = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    for plain, escaped in ESCAPES:
        line = line.replace(plain, escaped)
    return line


def loads(raw: bytes) -> Any:
    """The first JSON value of a body; the rest is ignored, as by Go's decoder."""
    if not raw.strip():
        raise Refused(400, "missing request body")
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return _read_first(raw.decode(errors="replace").lstrip(" \t\r\n"))


def _read_first(text: str) -> Any:
    try:
        value = DECODER.raw_decode(text)[0]
        # Go decodes a lone surrogate as U+FFFD.
        return json.loads(_whole(json.dumps(value, ensure_ascii=False)))
    except json.JSONDecodeError as error:
        raise Refused(400, _complaint(text, error)) from error
    except RecursionError as error:
        raise Refused(400, "exceeded max depth") from error


def _whole(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _no_constant(name: str) -> None:
    raise Refused(400, f"invalid character '{name[0]}' looking for beginning of value")


def _number(digits: str) -> float:
    if math.isfinite(number := float(digits)):
        return number
    raise Refused(400, f"json: cannot unmarshal number {digits[:40]} into Go value of type float64")


def _integer(digits: str) -> float:
    return int(digits) if len(digits) < 19 else _number(digits)


DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_number, parse_int=_integer)


def _complaint(text: str, error: json.JSONDecodeError) -> str:
    if error.pos >= len(text) or error.msg.startswith("Unterminated"):
        return "unexpected EOF"
    for start, complaint in COMPLAINTS.items():
        if error.msg.startswith(start):
            return f"invalid character '{text[error.pos]}' {complaint}"
    return "unexpected EOF"


def type_name(value: Any) -> str:
    """What Go's decoder calls a JSON value in its errors."""
    kinds: dict[type, str] = {bool: "bool", str: "string", list: "array", dict: "object"}
    return kinds.get(type(value), "number")


def parse_keep_alive(keep_alive: Any) -> float | None:
    """A keep_alive in seconds: None if unset, infinite if negative."""
    if keep_alive is None:
        return None
    if isinstance(keep_alive, bool) or not isinstance(keep_alive, int | float | str):
        name = {"bool": "bool", "array": "[]interface {}"}.get(type_name(keep_alive), "map[string]interface {}")
        raise Refused(400, f"Unsupported type: '{name}'")
    seconds = parse_duration(keep_alive) if isinstance(keep_alive, str) else float(keep_alive)
    return math.inf if seconds < 0 else seconds


def parse_duration(text: str) -> float:
    """Seconds of a Go duration such as "1h30m" or "-1s"."""
    sign, rest = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    parts = PART.findall(rest)
    if not parts or "".join(number + unit for number, unit in parts) != rest:
        raise Refused(400, f"time: invalid duration {quoted(text)}")
    return sign * sum(float(number) * _unit(unit, text) for number, unit in parts)


def _unit(unit: str, text: str) -> float:
    if not unit:
        raise Refused(400, f"time: missing unit in duration {quoted(text)}")
    if unit not in UNITS:
        raise Refused(400, f"time: unknown unit {quoted(unit)} in duration {quoted(text)}")
    return UNITS[unit]


def timestamp(at: float | None = None) -> str:
    """RFC 3339 with nanoseconds, in UTC; now, or the given seconds since 1970."""
    nanoseconds = time.time_ns() if at is None else int(at * 1e9)
    second, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{datetime.fromtimestamp(second, tz=UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
