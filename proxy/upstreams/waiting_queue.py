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

LONGEST_WAIT: Final = 60.0
"""Maximum of the wait in seconds that a refused caller is told, and of one interval in `mean_interval`."""
NEWEST_WEIGHT: Final = 0.1
"""Weight of the newest interval in the moving average `mean_interval`."""


Pick = Callable[[str, tuple[str, ...], int], HostState | None]
"""Model, URLs of tried hosts, and beginning of the conversation -> the best host for such a call now, None if all are
busy."""
Warm = Callable[[HostState, str], bool]
"""Whether a host has a model loaded."""


def address_of(url: str) -> str:
    """The part of a URL that identifies a host, including the path, since a gateway may serve several hosts."""
    return url.partition("://")[2]


def host_name(upstream: str, url: str, several: bool) -> str:
    """The name of a host as callers see it.  several: whether its upstream has more than one."""
    return f"{upstream}/{address_of(url)}" if several else upstream


@dataclass(slots=True, eq=False)
class WaitingCall:
    """One waiting call.

    model: canonical name.  tried: URLs of the hosts that failed it.  beginning: see `beginning_of`.
    ready: resolved with the host whose slot is reserved for it, or failed with TooMany.
    """

    call: Call
    model: str
    tried: tuple[str, ...] = ()
    beginning: int = 0
    ready: asyncio.Future[HostState] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class ServingOrder(Protocol):
    """The waiting calls; iterating gives them in the order in which they are served."""

    def add(self, one: WaitingCall) -> None: ...

    def remove(self, one: WaitingCall) -> None:
        """Remove a call that gives up waiting; it may have been removed already."""

    def served(self, one: WaitingCall) -> None:
        """Remove a call that has been assigned to a host."""

    def to_refuse(self, one: WaitingCall) -> WaitingCall:
        """The waiting call that is refused if there is no room for `one`; that may be `one` itself."""

    def __iter__(self) -> Iterator[WaitingCall]: ...

    def __len__(self) -> int: ...


class RoundRobin:
    """Round robin over callers, so that none starves another; each caller's calls are served first in, first out.

    If the queue is full, the caller with the most places loses the newest one to a caller with fewer.
    """

    def __init__(self) -> None:
        self.callers: OrderedDict[str, dict[WaitingCall, None]] = OrderedDict()

    def add(self, one: WaitingCall) -> None:
        self.callers.setdefault(one.call.caller, {})[one] = None

    def remove(self, one: WaitingCall) -> None:
        caller = one.call.caller
        calls = self.callers.get(caller, {})
        calls.pop(one, None)
        if not calls:
            self.callers.pop(caller, None)

    def served(self, one: WaitingCall) -> None:
        self.remove(one)
        if one.call.caller in self.callers:
            self.callers.move_to_end(one.call.caller)  # it has had its turn

    def to_refuse(self, one: WaitingCall) -> WaitingCall:
        greediest = max(self.callers.values(), key=places)
        return next(reversed(greediest)) if places(greediest) > places(self.callers[one.call.caller]) else one

    def __iter__(self) -> Iterator[WaitingCall]:
        for turn in zip_longest(*[list(calls) for calls in self.callers.values()]):
            yield from (one for one in turn if one is not None)

    def __len__(self) -> int:
        return sum(map(len, self.callers.values()))


def places(calls: Iterable[WaitingCall]) -> int:
    """The number of places that waiting calls take.

    The parts of a call for several answers share one place; otherwise a call with more parts than places could never
    be served.  They share one `trail` object; the request id would not do, as clients may choose equal ones.
    """
    return len({id(one.call.trail) for one in calls})


class WaitingQueue:
    """Assigns calls to hosts with free slots; the others wait.  Survives reloads, so that no call loses its place."""

    def __init__(self, order: ServingOrder, clock: Clock) -> None:
        self.order = order
        self.has_waiting = False
        """Whether any call is waiting."""
        self.clock = clock
        self.states: dict[str, HostState] = {}
        self.members: dict[str, Member] = {}
        """The hosts by URL, each from the newest pool that has it: a call that waits during a reload may be assigned to
        a host that its own pool does not know."""
        self.current: Sequence[HostState] = ()
        """The newest pool's hosts, from which `pick` chooses."""
        self.choices = 0  # the sequence number in `HostState.picked`
        self.pick: Pick = lambda model, tried, beginning: None
        """The newest pool's, so that calls that have waited since before a reload follow the new settings."""
        self.warm: Warm = lambda state, model: True
        self.group = 0.0
        """Seconds for which calls whose model is loaded may overtake one whose model is not."""
        self.held_since: dict[str, float] = {}
        """By a host's URL, the time since which calls are held back in favour of those for its loaded models."""
        self.timer: asyncio.TimerHandle | None = None
        """Serves held-back calls when their time is over, if no call ends earlier."""
        self.loads = self.loads_avoided = 0
        """Calls assigned to a host that had to load their model; and calls that overtook one for which a model would
        have been loaded."""
        self.mean_interval = 1.0
        """Moving average of the seconds between the ends of two calls while others wait."""
        self.last_release: float | None = None
        """When the latest call ended, if others have been waiting since; otherwise None."""

    def state_of(self, url: str, name: str) -> HostState:
        """The state of a host, created if it is new."""
        return self.states.setdefault(url, HostState(url, name))

    def use_pool(self, members: Mapping[str, Member], current: Sequence[HostState], pick: Pick, group: float) -> None:
        """Use this pool's hosts, choices and settings from now on, also for calls that already wait."""
        self.members |= members
        self.current, self.pick, self.group = current, pick, group
        self.warm = lambda state, model: members[state.url].warm(model)
        if len(current) == 1:
            current[0].out = False  # it may have been taken out in a larger pool; an only host never is
        self.serve()

    async def acquire(self, one: WaitingCall, bounds: Settings) -> HostState:
        """Wait for a host with a free slot, which is reserved until `release`.

        Raises TooMany if the queue is full or the wait too long.
        """
        self.add_call(one)
        self.serve()
        if not one.ready.done() and places(self.order) > bounds.most:
            self.refuse(self.order.to_refuse(one), bounds.most)
        return await self.assigned(one, bounds.wait)

    def refuse(self, one: WaitingCall, most: int) -> None:
        self.remove_call(one)
        if not one.ready.done():  # otherwise it was just cancelled
            message = f"All hosts are busy, and {most} calls are already waiting."
            one.ready.set_exception(TooMany(message, code="queue_full", wait=self.estimated_wait()))

    async def assigned(self, one: WaitingCall, patience: float) -> HostState:
        try:
            async with asyncio.timeout(patience):
                return await one.ready
        except BaseException as error:
            self.remove_call(one)
            if one.ready.done() and not one.ready.cancelled() and one.ready.exception() is None:
                # A host was assigned just before it gave up.
                one.ready.result().trial = False
                self.release(one.ready.result())
            if isinstance(error, TimeoutError):
                message = f"All hosts stayed busy for the {patience:g} seconds that a call may wait."
                raise TooMany(message, code="queue_timeout", wait=self.estimated_wait()) from None
            raise

    def add_call(self, one: WaitingCall) -> None:
        self.order.add(one)
        self.has_waiting = True

    def remove_call(self, one: WaitingCall) -> None:
        self.order.remove(one)
        self.has_waiting = len(self.order) > 0

    def reserve(self, found: HostState) -> HostState:
        """Reserve a slot of this host for a call; `release` frees it."""
        self.choices += 1
        found.picked = self.choices
        found.busy += 1
        if not found.healthy:
            found.trial = found.failures >= COOLDOWN_AFTER
        return found

    def release(self, state: HostState) -> None:
        """Release the slot of a call that has ended, and serve waiting calls."""
        state.busy -= 1
        if not self.has_waiting:
            self.last_release = None
            self.held_since.clear()
            return
        now = self.clock.monotonic()
        if self.last_release is not None:
            self.mean_interval += NEWEST_WEIGHT * (min(now - self.last_release, LONGEST_WAIT) - self.mean_interval)
        self.last_release = now
        self.serve()

    def serve(self) -> None:
        """Assign hosts to the waiting calls that can be served now, and tell the others how many are before them."""
        before, waiting = 0, {one.model for one in self.order if not one.ready.done()}
        held: list[WaitingCall] = []
        served = False
        for one in self.order:
            if one.ready.done():  # it was just cancelled
                continue
            found = self.pick(one.model, one.tried, one.beginning)
            if found is not None and self.holds_back(one, found, waiting):
                held.append(one)
                found = None
            if found is None:
                one.call.progress(f"waiting in line, {before} before")
                before += 1
            else:
                self.assign(one, found)
                self.loads_avoided += bool(held)
                served = True
        if held and not served:  # the calls in whose favour they were held back have no host
            self.assign_held(held)

    def holds_back(self, one: WaitingCall, found: HostState, waiting: Collection[str]) -> bool:
        """Whether a call must wait although a slot is free, so that calls for that host's loaded models go first.

        On a GPU with memory for one model, two models would otherwise evict each other with every call.
        """
        if not self.group or len(waiting) == 1 or self.warm(found, one.model):
            return False
        if not any(self.warm(found, model) for model in waiting):
            return False
        now = self.clock.monotonic()
        left = self.held_since.setdefault(found.url, now) + self.group - now
        if left > 0 and self.timer is None:
            self.timer = asyncio.get_running_loop().call_later(left, self.timer_over)
        return left > 0

    def timer_over(self) -> None:
        self.timer = None
        self.serve()

    def assign(self, one: WaitingCall, found: HostState) -> None:
        self.order.served(one)
        self.has_waiting = len(self.order) > 0
        if self.held_since and not self.warm(found, one.model):
            self.held_since.pop(found.url, None)  # another model is loaded there now, which starts a new period
        one.ready.set_result(self.reserve(found))

    def assign_held(self, held: Iterable[WaitingCall]) -> None:
        """Serve held-back calls after all, although their models must be loaded."""
        for one in held:
            if (found := self.pick(one.model, one.tried, one.beginning)) is not None:
                self.assign(one, found)

    def estimated_wait(self) -> float:
        """Estimated seconds after which a refused caller may find a place."""
        return max(1.0, min(LONGEST_WAIT, self.mean_interval * len(self.order)))

    def report(self) -> dict[str, JSON]:
        """The state of the queue, for operators."""
        return {"waiting": len(self.order), "loads": self.loads, "loads_avoided": self.loads_avoided}
