"""Where calls wait while every host that could take them is busy: one line for a pool."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Final, Protocol

from proxy.clock import Clock
from proxy.errors import TooMany
from proxy.settings import Line as Settings
from proxy.types import JSON, Call
from proxy.upstreams.members import Member
from proxy.upstreams.standing import COOLING, Standing

LONGEST: Final = 60.0
"""Seconds that a refused caller is told to wait at most."""
NEW: Final = 0.1
"""Weight of the newest interval in the mean that foretells how fast the line moves."""


Pick = Callable[[str, tuple[str, ...], int], Standing | None]
"""Model, hosts that were tried, and beginning of the conversation -> the host that could take such a call now."""
Warm = Callable[[Standing, str], bool]
"""Whether a host has a model loaded."""


def address_of(url: str) -> str:
    """What tells hosts of a pool apart: the path as well, since a gateway may have several under one name."""
    return url.partition("://")[2]


def named(upstream: str, url: str, several: bool) -> str:
    """What callers are told of one host.  several: whether its upstream has more."""
    return f"{upstream}/{address_of(url)}" if several else upstream


@dataclass(slots=True, eq=False)
class Waiting:
    """One call in line.  model: canonical; tried: hosts that it has been to; beginning: of its conversation."""

    call: Call
    model: str
    tried: tuple[str, ...] = ()
    beginning: int = 0
    ready: asyncio.Future[Standing] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Order(Protocol):
    """Who waits, and in which order they are served; iterating gives the first one first."""

    def add(self, one: Waiting) -> None: ...

    def remove(self, one: Waiting) -> None:
        """Of one that may have left already."""

    def served(self, one: Waiting) -> None:
        """The same of one that is sent on."""

    def giving_way(self, one: Waiting) -> Waiting:
        """Of those who wait, whose place this one may have where there is none left; its own if nobody's."""

    def __iter__(self) -> Iterator[Waiting]: ...

    def __len__(self) -> int: ...


class Turns:
    """A turn for each caller, so that none of them starves another; of one caller's calls the first comes first.

    Places, too, go by callers: who has most of them gives one to whoever has fewer.
    """

    def __init__(self) -> None:
        self.callers: OrderedDict[str, dict[Waiting, None]] = OrderedDict()

    def add(self, one: Waiting) -> None:
        self.callers.setdefault(one.call.caller, {})[one] = None

    def remove(self, one: Waiting) -> None:
        caller = one.call.caller
        calls = self.callers.get(caller, {})
        calls.pop(one, None)
        if not calls:
            self.callers.pop(caller, None)

    def served(self, one: Waiting) -> None:
        self.remove(one)
        if one.call.caller in self.callers:
            self.callers.move_to_end(one.call.caller)  # it has had its turn

    def giving_way(self, one: Waiting) -> Waiting:
        greediest = max(self.callers.values(), key=places)
        return next(reversed(greediest)) if places(greediest) > places(self.callers[one.call.caller]) else one

    def __iter__(self) -> Iterator[Waiting]:
        for turn in zip_longest(*[list(calls) for calls in self.callers.values()]):
            yield from (one for one in turn if one is not None)

    def __len__(self) -> int:
        return sum(map(len, self.callers.values()))


def places(calls: Iterable[Waiting]) -> int:
    """A call for several answers is one that waits, or it could never be served.  Its parts share a trail; an id is its
    client's to choose, and any number of calls may have it."""
    return len({id(one.call.trail) for one in calls})


class Line:
    """Lets calls to hosts that have room; the others wait.  Outlives reloads, so that nobody loses a place."""

    def __init__(self, order: Order, clock: Clock) -> None:
        self.order = order
        self.waits = False
        """Whether anybody does."""
        self.clock = clock
        self.standings: dict[str, Standing] = {}
        self.members: dict[str, Member] = {}
        """The hosts by their URLs, each of the newest pool that has it: whoever waits over a reload may be sent to one
        that its own pool does not know."""
        self.current: Sequence[Standing] = ()
        """The newest pool's hosts, of which `pick` gives one."""
        self.turn = 0
        self.pick: Pick = lambda model, tried, beginning: None
        """The newest pool's: those who wait longest are not bound to what the hosts were allowed when they came."""
        self.warm: Warm = lambda standing, model: True
        self.group = 0.0
        """Seconds for which calls whose model is loaded may go before one whose model is not."""
        self.grouped: dict[str, float] = {}
        """Since when others are held because of the model that a host, by its URL, has loaded."""
        self.look_again: asyncio.TimerHandle | None = None
        """Wakes those who are held at a host that has room, where nobody leaves one so soon."""
        self.loads = self.loads_avoided = 0
        """Calls that were sent to a host which had to load their model; and those that were not, because others of
        the loaded model went first."""
        self.pace = 1.0
        """Mean seconds between two calls that leave while others wait."""
        self.left: float | None = None
        """When the last one left, if others have waited since."""

    def standing(self, url: str, name: str) -> Standing:
        """name: of a host that was not known."""
        return self.standings.setdefault(url, Standing(url, name))

    def follow(self, members: Mapping[str, Member], current: Sequence[Standing], pick: Pick, group: float) -> None:
        """Serve those who wait by what a pool says from now on."""
        self.members |= members
        self.current, self.pick, self.group = current, pick, group
        self.warm = lambda standing, model: members[standing.url].warm(model)
        if len(current) == 1:
            current[0].out = False  # whatever was known of it among others: the only host is never out
        self.serve()

    async def enter(self, one: Waiting, bounds: Settings) -> Standing:
        """The host that takes this call, in its turn; give it back with `leave`.  Raises TooMany."""
        self.come(one)
        self.serve()
        if not one.ready.done() and places(self.order) > bounds.most:
            self.refuse(self.order.giving_way(one), bounds.most)
        return await self.waited(one, bounds.wait)

    def refuse(self, one: Waiting, most: int) -> None:
        self.gone(one)
        if not one.ready.done():  # else it is leaving
            message = f"All hosts are busy, and {most} calls are already waiting."
            one.ready.set_exception(TooMany(message, code="queue_full", wait=self.foretold()))

    async def waited(self, one: Waiting, patience: float) -> Standing:
        try:
            async with asyncio.timeout(patience):
                return await one.ready
        except BaseException as error:
            self.gone(one)
            if one.ready.done() and not one.ready.cancelled() and one.ready.exception() is None:
                # Served while it was leaving.
                one.ready.result().trial = False
                self.leave(one.ready.result())
            if isinstance(error, TimeoutError):
                message = f"All hosts stayed busy for the {patience:g} seconds that a call may wait."
                raise TooMany(message, code="queue_timeout", wait=self.foretold()) from None
            raise

    def come(self, one: Waiting) -> None:
        self.order.add(one)
        self.waits = True

    def gone(self, one: Waiting) -> None:
        self.order.remove(one)
        self.waits = len(self.order) > 0

    def taken(self, found: Standing) -> Standing:
        """A call begins on this host; give it back with `leave`."""
        self.turn += 1
        found.picked = self.turn
        found.busy += 1
        if not found.well:
            found.trial = found.failures >= COOLING
        return found

    def leave(self, standing: Standing) -> None:
        """A call has ended on this host."""
        standing.busy -= 1
        if not self.waits:
            self.left = None
            self.grouped.clear()
            return
        now = self.clock.monotonic()
        if self.left is not None:
            self.pace += NEW * (min(now - self.left, LONGEST) - self.pace)
        self.left = now
        self.serve()

    def serve(self) -> None:
        """Send on whoever can be taken now; tell the others how many stand before them."""
        before, waiting = 0, {one.model for one in self.order if not one.ready.done()}
        held: list[Waiting] = []
        served = False
        for one in self.order:
            if one.ready.done():  # it is leaving
                continue
            found = self.pick(one.model, one.tried, one.beginning)
            if found is not None and self.holds(one, found, waiting):
                held.append(one)
                found = None
            if found is None:
                one.call.progress(f"waiting in line, {before} before")
                before += 1
            else:
                self.send(one, found)
                self.loads_avoided += bool(held)
                served = True
        if held and not served:  # those for whom they were held could not be taken
            self.send_first(held)

    def holds(self, one: Waiting, found: Standing, waiting: Collection[str]) -> bool:
        """Whether a call shall wait, although there is room, for others whose model is loaded there.

        On a GPU with room for one model two of them would otherwise put each other out with every call.
        """
        if not self.group or len(waiting) == 1 or self.warm(found, one.model):
            return False
        if not any(self.warm(found, model) for model in waiting):
            return False
        now = self.clock.monotonic()
        left = self.grouped.setdefault(found.url, now) + self.group - now
        if left > 0 and self.look_again is None:
            self.look_again = asyncio.get_running_loop().call_later(left, self.looked_again)
        return left > 0

    def looked_again(self) -> None:
        self.look_again = None
        self.serve()

    def send(self, one: Waiting, found: Standing) -> None:
        self.order.served(one)
        self.waits = len(self.order) > 0
        if self.grouped and not self.warm(found, one.model):
            self.grouped.pop(found.url, None)  # now another group begins there
        one.ready.set_result(self.taken(found))

    def send_first(self, held: Iterable[Waiting]) -> None:
        for one in held:
            if (found := self.pick(one.model, one.tried, one.beginning)) is not None:
                self.send(one, found)

    def foretold(self) -> float:
        """Seconds after which a refused caller may find a place."""
        return max(1.0, min(LONGEST, self.pace * len(self.order)))

    def told(self) -> dict[str, JSON]:
        """For people."""
        return {"waiting": len(self.order), "loads": self.loads, "loads_avoided": self.loads_avoided}
