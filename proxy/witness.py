"""What whoever measures a call is told of it from further in, before anything of its answer comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from proxy.types import Usage


class Made(Struct, eq=False):
    """An answer that is read and held back until it is known to be what was asked for.

    model, upstream: which makes it, as far as that is known.  usage: what it said that it took.
    thought, said: letters of thinking and of the rest; pieces: events that brought them, which are tokens, about.
    given: whether any of it was handed on.
    """

    model: str = ""
    upstream: str = ""
    usage: Usage | None = None
    thought: int = 0
    said: int = 0
    pieces: int = 0
    given: bool = False

    @property
    def lost(self) -> bool:
        """Whether it took something of which nobody outside knows."""
        return not self.given and (self.usage is not None or self.pieces > 0)


class Witness:
    """Does not listen."""

    __slots__ = ()

    def sent(self, model: str) -> None:
        """An upstream has been asked by this name of its model: whoever leaves now has cost something."""

    def failed(self) -> None:
        """A try has failed; others may follow."""

    def spared(self) -> None:
        """Another call pays for what this one asked for."""

    def holds(self, made: Made) -> None:
        """This is read of an answer, of which nothing may be given in the end; it goes on growing."""

    def placed(self, upstream: str) -> None:
        """What was held back of an answer that failed was made there."""

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
    making: tuple[Made, ...] = ()
    """Answers that were held back."""
    last: Made | None = None
    """The one of the last try, if there is one."""

    @property
    def all_lost(self) -> bool:
        """Whether what the last try made is known, and nobody was given anything of it."""
        return self.last is not None and self.last.lost

    def sent(self, model: str) -> None:
        self.sent_as = model
        self.asking = True
        self.last = None

    def failed(self) -> None:
        self.failures += 1
        self.asking = False

    def spared(self) -> None:
        self.spares = True

    def holds(self, made: Made) -> None:
        made.model = made.model or self.sent_as
        self.making += (made,)
        self.last = made

    def placed(self, upstream: str) -> None:
        for made in self.making:
            made.upstream = made.upstream or upstream

    def retold(self, witness: Witness) -> None:
        """The other one knows as much then."""
        if self.asking and not self.failures and not self.making:  # as nearly always
            witness.sent(self.sent_as)
            return
        for made in self.making:
            if made is not self.last:
                witness.holds(made)
        if self.sent_as and not self.asking:
            witness.sent(self.sent_as)
        for _ in range(self.failures):
            witness.failed()
        if self.asking:
            witness.sent(self.sent_as)
        if self.last is not None:
            witness.holds(self.last)
