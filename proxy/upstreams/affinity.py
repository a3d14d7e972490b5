"""Which host has read the beginning of a conversation, so that it need not be read again."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from proxy.types import Call, Chat

MOST: Final = 10_000
"""Conversations that are remembered."""
LEAD: Final = 2
"""Calls more than another that a host may have under way and still be preferred for what it has read."""


def beginning_of(call: Call, model: str) -> int:
    """Equal for calls that go on with the same conversation; 0 for those that are none.

    It is made of everything up to the first words of the user: what follows grows with each turn.
    """
    ask = call.ask
    if type(ask) is not Chat:
        return 0
    texts = [model]
    for message in ask.messages:
        texts.append(message.text)
        if message.role == "user":
            break
    return hash(tuple(texts))


class Affinity:
    """The hosts that read what, the latest last."""

    def __init__(self) -> None:
        self.hosts: OrderedDict[int, str] = OrderedDict()

    def at(self, beginning: int) -> str | None:
        return self.hosts.get(beginning)

    def read(self, beginning: int, url: str) -> None:
        """A host has read this beginning."""
        self.hosts[beginning] = url
        self.hosts.move_to_end(beginning)
        if len(self.hosts) > MOST:
            self.hosts.popitem(last=False)
