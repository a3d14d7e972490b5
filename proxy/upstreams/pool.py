"""Equal hosts as one upstream: a call goes to the least busy one that has its model, loaded if possible."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from proxy.errors import NotFound, ProxyError, UpstreamError
from proxy.host import Services
from proxy.models import ModelInfo
from proxy.observer import Heard
from proxy.settings import Upstream
from proxy.types import JSON, Call, Reply
from proxy.upstreams import members
from proxy.upstreams.affinity import LEAD, Affinity, beginning_of
from proxy.upstreams.cooldown_sharing import CooldownSharing
from proxy.upstreams.failure_tracker import FailureTracker
from proxy.upstreams.host_state import COOLDOWN_PENALTY, HostState
from proxy.upstreams.members import Member, placed, told
from proxy.upstreams.waiting_queue import RoundRobin, WaitingCall, WaitingQueue, host_name
from proxy.upstreams.watch import POLL, Watch
from proxy.wire.ollama_models import canonical

log = logging.getLogger(__name__)

NEVER: Final = 2**60
LEAST_COOLDOWN: Final = COOLDOWN_PENALTY - LEAD
"""The smallest load of a host that cools down, since LEAD may have been subtracted."""
MOST: Final = 1000
"""Maximum number of models whose hosts are cached."""
COLD: Final = 4
"""How many more calls a host that has loaded the model may have and still be preferred, if `slots` is unset."""


@dataclass(slots=True)
class Asking:
    """A call, and the state of finding a host for it.

    name: canonical name of its model.  beginning: see `beginning_of`.  tried: URLs of the hosts that failed it.
    queued: milliseconds that it waited for its host.  timeout_counts: whether a late start is a failure of its host.
    """

    call: Call
    info: ModelInfo
    name: str
    beginning: int
    tried: tuple[str, ...] = ()
    queued: float = 0.0
    timeout_counts: bool = False


class Pool:
    """name: the upstream's.  sharing: informs other processes of hosts that cool down; None if nothing is shared."""

    def __init__(
        self,
        name: str,
        hosts: Sequence[Member],
        settings: Upstream,
        services: Services,
        sharing: CooldownSharing | None = None,
    ) -> None:
        self.name = name
        self.members = {host.url: host for host in hosts}
        share = services.worker_info.share
        self.queue_settings = settings.line.model_copy(update={"most": max(1, share(settings.line.most))})
        self.slots = None if settings.slots is None else share(settings.slots)
        self.cold = self.slots or COLD
        self.services = services
        self.queue = services.kept(f"queue {name}", lambda: WaitingQueue(RoundRobin(), services.clock))
        self.states = [self.queue.state_of(one.url, host_name(name, one.url, len(hosts) > 1)) for one in hosts]
        self.places = list(zip(self.states, hosts, strict=True))
        self.alone = hosts[0] if len(hosts) == 1 else None
        self.sharing = None if self.alone else sharing
        self.tracker = FailureTracker(services.clock, self.sharing)
        self.prompts = None if self.alone else services.kept(f"prompts {name}", Affinity)
        self.having: dict[str, Sequence[tuple[HostState, Member]]] = {}
        self.watch = Watch(self.members, self.states, services, self.heard)

    def __call__(self, call: Call, info: ModelInfo) -> Awaitable[Reply]:
        """Raises TooMany if the queue is full or the wait too long, otherwise what the host raises."""
        if self.alone is not None and self.slots is None:
            return self.straight(self.alone, call, info)
        return self.shared(call, info)

    async def straight(self, host: Member, call: Call, info: ModelInfo) -> Reply:
        try:
            return told(await host(call, info), info, self.name)
        except ProxyError as error:
            placed(error, info, self.name)
            call.observer.placed(self.name)
            raise

    async def shared(self, call: Call, info: ModelInfo) -> Reply:
        """Send the call to a host with a free slot, queueing if there is none; to another host if it was not begun."""
        if self.services.clock.monotonic() - self.watch.polled > POLL and self.alone is None:
            await self.watch.fresh()
        name = canonical(info.name)
        asking = Asking(call, info, name, 0 if self.prompts is None else beginning_of(call, name))
        state = self.free(asking)
        while True:
            if state is None:
                state = await self.waited(asking)
            member = self.members.get(state.url) or self.queue.members[state.url]
            if not member.warm(name):
                self.queue.loads += 1
            asking.info = member.known(name) or info
            asking.timeout_counts = call.stream and self.timeout_counts(asking, member)
            try:
                reply = await member(call, asking.info)
            except BaseException as error:
                if not self.lost(asking, state, error):
                    raise
                state = None
            else:
                return self.gained(asking, state, reply)

    def free(self, asking: Asking) -> HostState | None:
        """A host whose free slot is now reserved for the call; None if the call has to wait."""
        if self.sharing is not None:
            self.sharing.refresh(self.states)
        # A new call never overtakes waiting ones, even if a host is free for it.
        if self.queue.has_waiting or (state := self.pick(asking.name, (), asking.beginning)) is None:
            return None
        return self.queue.reserve(state)

    async def waited(self, asking: Asking) -> HostState:
        """Wait in the queue for a host whose slot is reserved for the call."""
        began = self.services.clock.monotonic()
        waiting = WaitingCall(asking.call, asking.name, asking.tried, asking.beginning)
        state = await self.queue.acquire(waiting, self.queue_settings)
        asking.queued = (self.services.clock.monotonic() - began) * 1000
        return state

    def lost(self, asking: Asking, state: HostState, error: BaseException) -> bool:
        """Record that the call failed at a host.  Gives whether another host may be tried."""
        self.tracker.record_error(state, error, asking.timeout_counts)
        self.queue.release(state)
        if not isinstance(error, ProxyError):
            return False
        placed(error, asking.info, state.name)
        asking.call.observer.placed(state.name)
        asking.tried = (*asking.tried, state.url)
        return self.elsewhere(error, state, asking.name, asking.tried)

    def gained(self, asking: Asking, state: HostState, reply: Reply) -> Reply:
        if self.prompts is not None and asking.beginning:
            self.prompts.read(asking.beginning, state.url)
        reply = told(reply, asking.info, state.name)
        if asking.queued:
            reply = reply.noting(**{"queue-ms": f"{asking.queued:.1f}"})
        if asking.call.stream:
            self.tracker.stream_began(state)
            watched = reply.through(partial(self.tracker.watch_stream, state, asking.call.deadline))
            return watched.on_close(partial(self.queue.release, state))
        if not state.healthy:
            self.tracker.record_success(state)
        self.queue.release(state)  # an answer that is not streamed has been read completely
        return reply

    def timeout_counts(self, asking: Asking, member: Member) -> bool:
        """Whether a late start of a stream would be this host's fault: the call has not waited or failed before, and
        the model is loaded."""
        observer = asking.call.observer
        fresh = not (asking.queued or asking.tried) and not (isinstance(observer, Heard) and observer.failures)
        return fresh and asking.name in member.loaded()

    # --- which host ----------------------------------------------------------------------------------

    def pick(self, name: str, tried: Sequence[str] = (), beginning: int = 0) -> HostState | None:
        """The best host for a call to this model now; None if all that could take it are busy."""
        places = self.having.get(name) or self.places_of(name)
        if tried:
            places = [place for place in places if place[0].url not in tried]
        return self.least_busy(name, places, beginning) if places else self.last_resort(name, tried)

    def least_busy(self, name: str, places: Sequence[tuple[HostState, Member]], beginning: int) -> HostState | None:
        """The host with the smallest load: its calls, corrected for its health, prompt cache and loaded models."""
        best, least, turn, slots = None, NEVER, 0, self.slots or NEVER
        read = self.prompts.at(beginning) if self.prompts is not None and beginning else None
        for one, member in places:
            if one.busy >= slots:
                continue
            load = one.busy if one.healthy else one.busy + one.penalty(self.services.clock.monotonic())
            if one.url == read:
                load -= LEAD
            if load > least or (load == least and one.picked > turn):
                continue
            if not member.warm(name):
                load += self.cold
            # Among equals, the least recently chosen one, so that none is starved.
            if load < least or (load == least and one.picked < turn):
                best, least, turn = one, load, one.picked
        return None if least >= LEAST_COOLDOWN and self.trusted(places) else best

    def trusted(self, places: Iterable[tuple[HostState, Member]]) -> bool:
        """Whether at least one host is not cooling down.  Then the others get no calls, even if that one is busy."""
        now = self.services.clock.monotonic()
        return any(one.penalty(now) < COOLDOWN_PENALTY for one, _ in places)

    def places_of(self, name: str) -> Sequence[tuple[HostState, Member]]:
        """The reachable hosts that are known to have a model; cached until something changes at any host."""
        if len(self.having) >= MOST:
            self.having.clear()
        found = [(one, member) for one, member in self.places if not one.out and member.known(name) is not None]
        self.having[name] = found
        return found

    def last_resort(self, name: str, tried: Sequence[str]) -> HostState | None:
        """The host to ask if no reachable one is known to have the model; its error tells the caller what is wrong."""
        free = [one for one in self.states if one.url not in tried and (self.slots is None or one.busy < self.slots)]
        known = [one for one in free if self.members[one.url].known(name)]
        return min(known or free, key=lambda one: (one.busy, one.picked), default=None)

    def elsewhere(self, error: ProxyError, failed: HostState, name: str, tried: Sequence[str]) -> bool:
        """Whether to try another host: this one certainly has not begun the call, and another one has the model."""
        if isinstance(error, UpstreamError) and error.cause == "connect":
            if failed.url in self.members:
                self.watch.take_out(failed, error)
        elif not (isinstance(error, NotFound) and error.code == "model_not_found"):
            return False
        others = (one for one in self.queue.current if one.url not in tried and not one.out)
        return any(self.queue.members[one.url].known(name) for one in others)

    def heard(self) -> None:
        """Called when the state of a host has changed: clear cached hosts, and serve waiting calls if possible."""
        self.having.clear()
        self.queue.serve()

    def open(self) -> None:
        """Take over the hosts and the queue from the pool of the previous configuration."""
        for one in self.states:
            one.name = host_name(self.name, one.url, self.alone is None)
            self.members[one.url].open()
        self.queue.use_pool(self.members, self.states, self.pick, self.queue_settings.group)

    def close(self) -> None:
        """Stop probing unreachable hosts; the pool that replaces this one continues."""
        for one in self.states:
            if one.probe is not None:
                one.probe.cancel()

    def changed(self, url: str) -> None:
        self.members[url].changed()
        self.watch.polled = float("-inf")

    # --- what they have ------------------------------------------------------------------------------

    def usable(self) -> list[Member]:
        return [self.members[one.url] for one in self.states if not one.out] or list(self.members.values())

    async def find(self, name: str) -> ModelInfo | None:
        """Raises UpstreamError if no host answers, or none of those that are known to have the model."""
        await self.watch.fresh()
        found = await members.found(self.usable(), name)
        self.having.clear()
        return found

    async def models(self) -> Mapping[str, ModelInfo]:
        """All hosts' models, merged.  Raises UpstreamError if no host has a current list."""
        return await members.models(self.usable())

    def window(self, name: str) -> int | None:
        return min(filter(None, (one.window(name) for one in self.members.values())), default=None)

    async def running(self) -> list[JSON]:
        """Raises UpstreamError only if no host answers."""
        return await members.running(self.usable())

    async def show(self, body: Mapping[str, JSON]) -> bytes:
        name, there = canonical(str(body.get("model", ""))), self.usable()
        return await next((one for one in there if one.known(name)), there[0]).show(body)

    async def version(self) -> str:
        """The version of the first host that answers.  Raises UpstreamError if none does."""
        return await members.version(list(self.members.values()))

    def told(self) -> JSON:
        """The state of the queue and the hosts, for operators."""
        now = self.services.clock.monotonic()
        hosts = [
            {
                "host": one.url,
                "state": one.state(now),
                "busy": one.busy,
                "failures": one.failures,
                "loaded": sorted(self.members[one.url].loaded()),
            }
            for one in self.states
        ]
        return {"slots": self.slots, **self.queue.report(), "hosts": hosts}

    async def alive(self) -> Mapping[str, str]:
        """URL of each host -> "" if it answers, otherwise the error."""
        told = await asyncio.gather(*(one.version() for one in self.members.values()), return_exceptions=True)
        return {url: "" if isinstance(one, str) else str(one) for url, one in zip(self.members, told, strict=True)}
