"""Whether this process accepts calls, and whether it still waits for those that are running."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

STOPPED: Final = "server_stopped"
"""The error code of a call that the server did not wait for when it stopped."""


@dataclass(slots=True)
class Readiness:
    """The state of a shutdown.  A stopping server reports that it is not ready before it closes its port."""

    stopping: bool = False
    cut: bool = False
    """Whether running calls are no longer waited for, so that a lost answer does not mean that the client left."""
