"""What features tell each other without knowing each other, through `host.announce` and `host.on`."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.values import value


@value
class Attempt:
    """One try of a call has ended.

    model, upstream: which were asked; upstream "" where it is not known, as of a try that failed.
    number: counts from 1 over the tries of one model.  error: its code, "" where it went well.
    """

    call: str
    caller: str
    route: str
    model: str
    upstream: str
    number: int
    error: str
    seconds: float


@dataclass(frozen=True, slots=True)
class FellBack:
    """A call went on to another model or upstream.  error: the code of what the one before failed with."""

    call: str
    caller: str
    asked: str
    model: str
    error: str
