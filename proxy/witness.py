"""What whoever measures a call is told of it from further in, before anything of its answer comes."""

from __future__ import annotations

from typing import Final


class Witness:
    """Does not listen."""

    __slots__ = ()

    def sent(self, model: str) -> None:
        """An upstream has been asked by this name of its model: whoever leaves now has cost something."""

    def failed(self) -> None:
        """A try has failed; others may follow."""

    def spared(self) -> None:
        """Another call pays for what this one asked for."""


NOBODY: Final = Witness()


class Heard(Witness):
    """What it was told until now."""

    __slots__ = ("asking", "failures", "sent_as", "spares")

    def __init__(self) -> None:
        self.sent_as = ""
        """By which name of its model an upstream was asked, if one was."""
        self.failures = 0
        """Tries that failed."""
        self.asking = False
        """Whether there is one that has not."""
        self.spares = False
        """Whether another call pays."""

    @property
    def tries(self) -> int:
        return self.failures + self.asking

    def sent(self, model: str) -> None:
        self.sent_as = model
        self.asking = True

    def failed(self) -> None:
        self.failures += 1
        self.asking = False

    def spared(self) -> None:
        self.spares = True

    def retold(self, witness: Witness) -> None:
        """The other one knows as much then."""
        if self.sent_as and not self.asking:
            witness.sent(self.sent_as)
        for _ in range(self.failures):
            witness.failed()
        if self.asking:
            witness.sent(self.sent_as)
