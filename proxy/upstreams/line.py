"""The queue of a pool, where calls wait while every host that could take them is busy."""

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
from proxy.upstreams.host_state import COOLDOWN_AFTER, HostState
from proxy.upstreams.members import Member

LONGEST: Final = 60.0
"""Maximum of the wait in seconds that a refused caller is told, and of one interval in `pace`."""
NEW: Final = 0.1
"""Weight of the newest interval in the moving average `pace`."""


Pick = Callable[[str, tuple[str, ...], int], HostState | None]
"""Model, URLs of tried hosts, and beginning of the conversation -> the best host for such a call now, None if all are
busy."""
Warm = Callable[[HostState, str], bool]
"""Whether a host has a model loaded."""


def address_of(url: str) -> str:
    """The part of a URL that identifies a host, including the path, since a gateway may serve several hosts."""
    return url.partition("://")[2]


def named(upstream: str, url: str, several: bool) -> str:
    """The name of a host as callers see it.  several: whether its upstream has more than one."""
    return f"{upstream}/{address_of(url)}" if several else upstream


@dataclass(slots=True, eq=False)
class Waiting:
    """One waiting call.

    model: canonical name.  tried: URLs of the hosts that failed it.  beginning: see `beginning_of`.
    ready: resolved with the host whose slot is reserved for it, or failed with TooMany.
    """

    call: Call
    model: str
    tried: tuple[str, ...] = ()
    beginning: int = 0
    ready: asyncio.Future[HostState] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Order(Protocol):
    """The waiting calls; iterating gives them in the order in which they are served."""

    def add(self, one: Waiting) -> None: ...

    def remove(self, one: Waiting) -> None:
        """Remove a call that gives up waiting; it may have been removed already."""

    def served(self, one: Waiting) -> None:
        """Remove a call that has been assigned to a host."""

    def giving_way(self, one: Waiting) -> Waiting:
        """The waiting call that is refused if there is no room for `one`; that may be `one` itself."""

    def __iter__(self) -> Iterator[Waiting]: ...

    def __len__(self) -> int: ...


class Turns:
    """Round robin over callers, so that none starves another; each caller's calls are served first in, first out.

    If the queue is full, the caller with the most places loses the newest one to a caller with fewer.
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
    """The number of places that waiting calls take.

    The parts of a call for several answers share one place; otherwise a call with more parts than places could never
    be served.  They share one `trail` object; the request id would not do, as clients may choose equal ones.
    """
    return len({id(one.call.trail) for one in calls})


class Line:
    """Assigns calls to hosts with free slots; the others wait.  Survives reloads, so that no call loses its place."""

    def __init__(self, order: Order, clock: Clock) -> None:
        self.order = order
        self.waits = False
        """Whether any call is waiting."""
        self.clock = clock
        self.states: dict[str, HostState] = {}
        self.members: dict[str, Member] = {}
        """The hosts by URL, each from the newest pool that has it: a call that waits during a reload may be assigned to
        a host that its own pool does not know."""
        self.current: Sequence[HostState] = ()
        """The newest pool's hosts, from which `pick` chooses."""
        self.turn = 0
        self.pick: Pick = lambda model, tried, beginning: None
        """The newest pool's, so that calls that have waited since before a reload follow the new settings."""
        self.warm: Warm = lambda state, model: True
        self.group = 0.0
        """Seconds for which calls whose model is loaded may overtake one whose model is not."""
        self.grouped: dict[str, float] = {}
        """By a host's URL, the time since which calls are held back in favour of those for its loaded models."""
        self.look_again: asyncio.TimerHandle | None = None
        """Serves held-back calls when their time is over, if no call ends earlier."""
        self.loads = self.loads_avoided = 0
        """Calls assigned to a host that had to load their model; and calls that overtook one for which a model would
        have been loaded."""
        self.pace = 1.0
        """Moving average of the seconds between the ends of two calls while others wait."""
        self.left: float | None = None
        """When the latest call ended, if others have been waiting since; otherwise None."""

    def state(self, url: str, name: str) -> HostState:
        """The state of a host, created if it is new."""
        return self.states.setdefault(url, HostState(url, name))

    def follow(self, members: Mapping[str, Member], current: Sequence[HostState], pick: Pick, group: float) -> None:
        """Use this pool's hosts, choices and settings from now on, also for calls that already wait."""
        self.members |= members
        self.current, self.pick, self.group = current, pick, group
        self.warm = lambda state, model: members[state.url].warm(model)
        if len(current) == 1:
            current[0].out = False  # it may have been taken out in a larger pool; an only host never is
        self.serve()

    async def enter(self, one: Waiting, bounds: Settings) -> HostState:
        """Wait for a host with a free slot, which is reserved until `leave`.

        Raises TooMany if the queue is full or the wait too long.
        """
        self.come(one)
        self.serve()
        if not one.ready.done() and places(self.order) > bounds.most:
            self.refuse(self.order.giving_way(one), bounds.most)
        return await self.waited(one, bounds.wait)

    def refuse(self, one: Waiting, most: int) -> None:
        self.gone(one)
        if not one.ready.done():  # otherwise it was just cancelled
            message = f"All hosts are busy, and {most} calls are already waiting."
            one.ready.set_exception(TooMany(message, code="queue_full", wait=self.foretold()))

    async def waited(self, one: Waiting, patience: float) -> HostState:
        try:
            async with asyncio.timeout(patience):
                return await one.ready
        except BaseException as error:
            self.gone(one)
            if one.ready.done() and not one.ready.cancelled() and one.ready.exception() is None:
                # A host was assigned just before it gave up.
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

    def taken(self, found: HostState) -> HostState:
        """Reserve a slot of this host for a call; `leave` releases it."""
        self.turn += 1
        found.picked = self.turn
        found.busy += 1
        if not found.healthy:
            found.trial = found.failures >= COOLDOWN_AFTER
        return found

    def leave(self, state: HostState) -> None:
        """Release the slot of a call that has ended, and serve waiting calls."""
        state.busy -= 1
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
        """Assign hosts to the waiting calls that can be served now, and tell the others how many are before them."""
        before, waiting = 0, {one.model for one in self.order if not one.ready.done()}
        held: list[Waiting] = []
        served = False
        for one in self.order:
            if one.ready.done():  # it was just cancelled
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
        if held and not served:  # the calls in whose favour they were held back have no host
            self.send_first(held)

    def holds(self, one: Waiting, found: HostState, waiting: Collection[str]) -> bool:
        """Whether a call must wait although a slot is free, so that calls for that host's loaded models go first.

        On a GPU with memory for one model, two models would otherwise evict each other with every call.
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

    def send(self, one: Waiting, found: HostState) -> None:
        self.order.served(one)
        self.waits = len(self.order) > 0
        if self.grouped and not self.warm(found, one.model):
            self.grouped.pop(found.url, None)  # another model is loaded there now, which starts a new period
        one.ready.set_result(self.taken(found))

    def send_first(self, held: Iterable[Waiting]) -> None:
        for one in held:
            if (found := self.pick(one.model, one.tried, one.beginning)) is not None:
                self.send(one, found)

    def foretold(self) -> float:
        """Estimated seconds after which a refused caller may find a place."""
        return max(1.0, min(LONGEST, self.pace * len(self.order)))

    def told(self) -> dict[str, JSON]:
        """The state of the queue, for operators."""
        return {"waiting": len(self.order), "loads": self.loads, "loads_avoided": self.loads_avoided}
