"""The proxies that a call came through, in the header `Via`.  Source: RFC 9110, section 7.6.3."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Final

from proxy.errors import Looped

OURS: Final = re.compile(r"(?<![\w-])gemmapy-[0-9a-f]{16}(?![\w-])")
"""How a proxy of this kind names itself; what other proxies write there is not handed on."""
MOST: Final = 8
"""Proxies of this kind in a row; more are a loop through servers that do not know each other's names."""

VIA: ContextVar[str] = ContextVar("via", default="")
"""What goes on with anything that is asked because of the request under way, such as a list of models."""


def named(server: str) -> str:
    """What a server adds.  server: its id, hexadecimal."""
    return f"1.1 gemmapy-{server[:16]}"


def onwards(via: Sequence[str], server: str) -> str:
    """The header of what goes on from here.  via: those of the request.  Raises Looped if it has been here before."""
    mine = named(server)
    if not via:
        return mine
    hops = OURS.findall(",".join(via))
    if f"gemmapy-{server[:16]}" in hops:
        raise Looped("The call came back to this server: one of its upstreams leads here.")
    if len(hops) >= MOST:
        raise Looped(f"The call has come through {len(hops)} proxies, which looks like a loop.")
    return ", ".join([*(f"1.1 {hop}" for hop in hops), mine])
