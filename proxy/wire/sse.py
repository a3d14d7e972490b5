"""Server-sent events.  Source: WHATWG HTML, "Server-sent events"."""

from __future__ import annotations

from typing import Final

from proxy.errors import UpstreamError

DONE: Final = b"data: [DONE]\n\n"
MARK: Final = b"\xef\xbb\xbf"
"""A byte order mark, which may stand before a stream and means nothing."""
NO_FIELD: Final = (b"{", b"[", b"<")
"""How a whole document begins, and no line of a stream that means anything."""


def data(payload: bytes) -> bytes:
    """One event; JSON written by orjson has no line breaks."""
    return b"data: " + payload + b"\n\n"


def event(name: str, payload: bytes) -> bytes:
    """One event that says what it is."""
    return b"event: " + name.encode() + b"\ndata: " + payload + b"\n\n"


def comment(text: str) -> bytes:
    """A line that clients skip and that keeps gateways from closing an idle connection."""
    return b": " + " ".join(text.split()).encode() + b"\n\n"


class Parser:
    """Cuts a byte stream, however it was split on its way, into the data of its events.

    A document that comes instead, from a server that does not stream, is one event, whole at the `end`.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        """Bytes that one event may have."""
        self.rest = b""
        self.held: list[bytes] = []
        self.size = 0
        self.fresh = True
        """Whether nothing has come that would tell which of the two it is."""
        self.document = False

    def feed(self, data: bytes) -> list[bytes]:
        """The data of the events that are complete now; raises UpstreamError when one grows past its bound."""
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
        """What is to be read of the first bytes."""
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
        """The data of the event that a line ends."""
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
        """What a stream that ended without an empty line still had to say, or the document."""
        return [b"".join(self.held)] if self.document else self.feed(b"\n\n")
