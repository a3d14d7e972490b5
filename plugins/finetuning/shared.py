"""The state of fine-tuning that survives reloads."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from proxy.host import Host

NAME: Final = "fine-tuning"


@dataclass(slots=True)
class Shared:
    """open: the open pipelines, the newest last.  stopped: jobs that were cancelled or taken over."""

    reading: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    training: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    stopped: set[str] = field(default_factory=set)
    open: list[Host] = field(default_factory=list)

    @classmethod
    def of(cls, host: Host) -> Shared:
        return host.process_state(NAME, cls)

    def newest(self, host: Host) -> Host:
        """The pipeline of the current configuration; the given one if none is open yet."""
        return self.open[-1] if self.open else host
