"""Loop detection by the header `Via`, which lists the proxies behind a call.  Source: RFC 9110, section 7.6.3."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Final

from proxy.errors import Looped

OURS: Final = re.compile(r"(?<![\w-])gemmapy-[0-9a-f]{16}(?![\w-])")
"""The name of a GemmaPy Proxy in `Via`; entries of other proxies are not passed on."""
MOST: Final = 8
"""Maximum number of GemmaPy Proxies in a row; more are taken for a loop."""

VIA: ContextVar[str] = ContextVar("via", default="")
"""The `Via` to send with every request to an upstream that the current request causes, such as for a list of models."""


def via_entry(server: str) -> str:
    """The entry that a server adds.  server: its id, hexadecimal."""
    return f"1.1 gemmapy-{server[:16]}"


def extended_via(via: Sequence[str], server: str) -> str:
    """The `Via` to send to upstreams.  via: the request's.  Raises Looped if it contains this server or too many."""
    mine = via_entry(server)
    if not via:
        return mine
    hops = OURS.findall(",".join(via))
    if f"gemmapy-{server[:16]}" in hops:
        raise Looped("The call came back to this server: one of its upstreams leads here.")
    if len(hops) >= MOST:
        raise Looped(f"The call has come through {len(hops)} proxies, which looks like a loop.")
    return ", ".join([*(f"1.1 {hop}" for hop in hops), mine])
