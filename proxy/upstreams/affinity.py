"""Which host has read the beginning of a conversation, so that its prompt cache can be used."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from proxy.types import Call, Chat

MOST_CONVERSATIONS: Final = 10_000
"""Maximum number of conversations that are remembered."""
LEAD: Final = 2
"""How many more calls than another a host may have and still be preferred for a conversation that it has read."""


def beginning_of(call: Call, model: str) -> int:
    """A hash that is equal for all turns of a conversation; 0 if the call is not a chat.

    It covers the model and all messages up to the user's first one, since later ones are added with each turn.
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
    """By the beginning of a conversation, the host that last read it; least recently used first."""

    def __init__(self) -> None:
        self.hosts: OrderedDict[int, str] = OrderedDict()

    def host_of(self, beginning: int) -> str | None:
        return self.hosts.get(beginning)

    def record(self, beginning: int, url: str) -> None:
        """Record that a host has read this beginning."""
        self.hosts[beginning] = url
        self.hosts.move_to_end(beginning)
        if len(self.hosts) > MOST_CONVERSATIONS:
            self.hosts.popitem(last=False)
