"""The stream of a background response, sent again with the same sequence numbers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Final

from plugins.stored.answers import StoredAnswer, said_in
from plugins.stored.runs import Run, cancelled
from proxy.errors import ProxyError, TooMany
from proxy.types import JSON, Moment
from proxy.wire import sse
from proxy.wire.openai_responses_out import NOTHING, Response

HEARTBEAT: Final = 15.0
"""Seconds without an event after which a comment is sent as a keep-alive."""
FRESH: Final[Mapping[str, JSON]] = {
    "status": "in_progress", "error": None, "incomplete_details": None, "usage": None, "completed_at": None,
    "output": [],
}  # fmt: skip
"""Fields of a response before it has any output."""
END: Final = b"\n\n"


async def behind(after: int, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events after this sequence number, and all comments."""
    number = -1
    async for part in parts:
        for frame in part.split(END)[:-1]:
            comment = frame.startswith(b":")
            number += not comment
            if comment or number > after:
                yield frame + END


async def live_stream(run: Run) -> AsyncIterator[bytes]:
    """The stream of a running response, from its beginning."""
    response, at = Response(run.head, run.complete), 0
    yield response.write(NOTHING)
    while not run.over or at < len(run.events):
        if at < len(run.events):
            at += 1
            yield response.write(run.events[at - 1])
        elif not await run.more(at, HEARTBEAT):
            yield sse.comment("waiting")
    yield response.end() if run.error is None else response.failed(run.error)


def replayed_stream(kept: StoredAnswer) -> Iterator[bytes]:
    """The stream of a response that has ended."""
    response = Response({**kept.head, **FRESH}, Moment(kept.head["completed_at"]))
    yield response.write(NOTHING)
    events, error = said_in(kept.events)
    for event in events:
        yield response.write(event)
    error = error or error_of(kept)
    yield response.end() if error is None else response.failed(error)


def error_of(kept: StoredAnswer) -> ProxyError | None:
    """The error of an incomplete response, if its process could not store one with the events."""
    if kept.status == "cancelled":
        return cancelled()
    told = kept.head["error"]
    if told is None:
        return None
    kind = TooMany if told["code"] == "rate_limit_exceeded" else ProxyError
    return kind(told["message"], code=told["code"])
