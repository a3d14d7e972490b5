"""What of fine-tuning outlives a reload."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from proxy.host import Host

NAME: Final = "fine-tuning"


@dataclass(slots=True)
class Shared:
    """open: the pipelines that are, the newest last.  stopped: jobs that were cancelled, or are another's."""

    reading: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    training: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    stopped: set[str] = field(default_factory=set)
    open: list[Host] = field(default_factory=list)

    @classmethod
    def of(cls, host: Host) -> Shared:
        return host.kept(NAME, cls)

    def newest(self, host: Host) -> Host:
        """The one whose configuration holds now; this one, before any is open."""
        return self.open[-1] if self.open else host
