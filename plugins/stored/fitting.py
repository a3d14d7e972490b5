"""`truncation: auto`: if a chat exceeds the model's context, its oldest exchanges are dropped as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from msgspec.structs import replace

from proxy.errors import BadCall
from proxy.types import Call, Chat, Handler, Message, Reply

FULL: Final = "context_length_exceeded"
FACT: Final = "truncated"


async def fitted(call: Call, call_next: Handler) -> Reply:
    """The reply to as much of a chat as fits.  Raises BadCall if not even its last exchange does."""
    try:
        return await call_next(call)
    except BadCall as error:
        if error.code != FULL or not isinstance(call.ask, Chat):
            raise
        failed = error
    messages = call.ask.messages
    for shorter in shortened(messages):
        try:
            reply = await call_next(call.but(ask=replace(call.ask, messages=shorter)))
            return reply.noting(**{FACT: str(len(messages) - len(shorter))})
        except BadCall as error:
            if error.code != FULL:
                raise
            failed = error
    raise failed


def shortened(messages: tuple[Message, ...]) -> Iterator[tuple[Message, ...]]:
    """The chat with ever fewer exchanges: the oldest quarter to half dropped, then more, until only the last remains.

    The number of dropped exchanges is a multiple of a power of two, so it stays the same for many turns; so does the
    beginning of the prompt, and the model's prompt cache is hit.  A leading system message is kept.
    """
    lead = 1 if messages and messages[0].role == "system" else 0
    starts = [index for index, one in enumerate(messages) if one.role == "user" and index > lead]
    if not starts:
        return
    step = 1 << max(0, len(starts).bit_length() - 2)
    for dropped in dict.fromkeys((*range(step, len(starts), step), len(starts))):
        yield (*messages[:lead], *messages[starts[dropped - 1] :])
