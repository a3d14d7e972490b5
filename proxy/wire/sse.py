"""Server-sent events.  Source: WHATWG HTML, "Server-sent events"."""

from __future__ import annotations

from typing import Final

DONE: Final = b"data: [DONE]\n\n"


def data(payload: bytes) -> bytes:
    """One event; JSON written by orjson has no line breaks."""
    return b"data: " + payload + b"\n\n"


def comment(text: str) -> bytes:
    """A line that clients skip and that keeps gateways from closing an idle connection."""
    return b": " + " ".join(text.split()).encode() + b"\n\n"
