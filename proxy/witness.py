"""What whoever measures a call is told of it from further in, before anything of its answer comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from proxy.types import Usage


class Witness:
    """Does not listen."""

    __slots__ = ()

    def sent(self, model: str) -> None:
        """An upstream has been asked by this name of its model: whoever leaves now has cost something."""

    def failed(self) -> None:
        """A try has failed; others may follow."""

    def spared(self) -> None:
        """Another call pays for what this one asked for."""

    def wasted(self, usage: Usage) -> None:
        """So much took an answer that was complete and is not given, since it is not what was asked for."""

    def foretold(self, facts: Mapping[str, str]) -> None:
        """These facts of its answer are known: a stream's head may have to be written before its first event."""


NOBODY: Final = Witness()


class Try(Struct, eq=False):
    """One try of a call under way, as those see it who make it, too, further in.

    number: counts from 1 over the tries of one model.  began: monotonic seconds.
    outer: the same one, as who stands further out began it.
    told: whether one of them has announced it: who stands furthest in knows best what was asked.
    """

    route: str
    number: int
    began: float
    outer: Try | None = None
    told: bool = False
    taken: bool = False
    """Whether somebody further in makes this very one: the first who does, of several at once."""


class Heard(Witness, Struct, eq=False):
    """What it was told until now."""

    sent_as: str = ""
    """By which name of its model an upstream was asked, if one was."""
    failures: int = 0
    """Tries that failed."""
    asking: bool = False
    """Whether there is one that has not."""
    spares: bool = False
    """Whether another call pays."""
    lost: tuple[Usage, ...] = ()
    """What answers took that are not given."""

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

    def wasted(self, usage: Usage) -> None:
        self.lost += (usage,)

    def retold(self, witness: Witness) -> None:
        """The other one knows as much then."""
        if self.sent_as and not self.asking:
            witness.sent(self.sent_as)
        for _ in range(self.failures):
            witness.failed()
        if self.asking:
            witness.sent(self.sent_as)
        for usage in self.lost:
            witness.wasted(usage)
