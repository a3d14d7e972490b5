"""Whether the database or a store answered when it was last used; noted in passing, without extra requests."""

from __future__ import annotations


class Availability:
    """times: how often it was used.  up: whether it answered the last time; meaningless while `times` is 0."""

    __slots__ = ("times", "up")

    def __init__(self) -> None:
        self.times = 0
        self.up = True

    def note(self, up: bool) -> None:
        self.times += 1
        self.up = up
