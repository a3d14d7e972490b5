"""Whether this process takes calls, and whether it still waits for those it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

STOPPED: Final = "server_stopped"
"""The code of a call that a server did not wait for."""


@dataclass(slots=True)
class Readiness:
    """Outlives reloads: a server that stops says so before it closes its port."""

    stopping: bool = False
    cut: bool = False
    """Whether calls are not waited for any more: who then loses an answer has not left."""
