"""Whether what lives outside of the process answered when it was last asked; nobody asks it for that."""

from __future__ import annotations


class Seen:
    """up: means nothing before the first of so many times."""

    __slots__ = ("times", "up")

    def __init__(self) -> None:
        self.times = 0
        self.up = True

    def note(self, up: bool) -> None:
        self.times += 1
        self.up = up
