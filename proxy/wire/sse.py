"""Server-sent events.  Source: WHATWG HTML, "Server-sent events"."""

from __future__ import annotations

from typing import Final

from proxy.errors import UpstreamError

DONE: Final = b"data: [DONE]\n\n"
MARK: Final = b"\xef\xbb\xbf"
"""A byte order mark, which may precede a stream and is ignored."""
NO_FIELD: Final = (b"{", b"[", b"<")
"""First bytes of a whole document; no field of an event begins with them."""


def data(payload: bytes) -> bytes:
    """One event.  payload: without line breaks, such as JSON written by orjson."""
    return b"data: " + payload + b"\n\n"


def event(name: str, payload: bytes) -> bytes:
    """One event with its type."""
    return b"event: " + name.encode() + b"\ndata: " + payload + b"\n\n"


def comment(text: str) -> bytes:
    """A line that clients skip and that keeps gateways from closing an idle connection."""
    return b": " + " ".join(text.split()).encode() + b"\n\n"


class Parser:
    """Splits a byte stream, which arrives in arbitrary pieces, into the data of its events.

    If a server sends a whole document instead of a stream, that is one event, given by `end`.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        """Maximum bytes of one event."""
        self.rest = b""
        self.held: list[bytes] = []
        self.size = 0
        self.fresh = True
        """Whether too little has arrived to tell a stream from a document."""
        self.document = False

    def feed(self, data: bytes) -> list[bytes]:
        """The data of the events that are now complete.  Raises UpstreamError if one becomes too large."""
        if self.fresh:
            data = self.begun(data)
        if self.document:
            self.held.append(data)
            self.size += len(data)
            return self.bounded([])
        lines = (self.rest + data if self.rest else data).split(b"\n")
        self.rest = lines.pop()
        found = [event for line in lines if (event := self.line(line.removesuffix(b"\r"))) is not None]
        return self.bounded(found)

    def begun(self, data: bytes) -> bytes:
        """The first bytes without a byte order mark or blank lines; decides between stream and document."""
        data, self.rest = self.rest + data, b""
        if data.startswith(MARK) or not MARK.startswith(data):
            data = data.removeprefix(MARK).lstrip()
            self.fresh = not data
            self.document = data.startswith(NO_FIELD)
        return data

    def bounded(self, found: list[bytes]) -> list[bytes]:
        if self.size + len(self.rest) > self.most or any(len(event) > self.most for event in found):
            raise UpstreamError(f"The upstream sent an event of more than {self.most} bytes.", "server")
        return found

    def line(self, line: bytes) -> bytes | None:
        """Read a line.  Gives the data of an event if an empty line ends it."""
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self.held.append(value.removeprefix(b" "))
                self.size += len(value)
            return None
        if not self.held:
            return None
        event = self.held[0] if len(self.held) == 1 else b"\n".join(self.held)
        self.held.clear()
        self.size = 0
        return event

    def end(self) -> list[bytes]:
        """The last event of a stream that ended without an empty line, or the document."""
        return [b"".join(self.held)] if self.document else self.feed(b"\n\n")
