"""Equal hosts as one upstream: a call goes to the least busy one that has its model, loaded if possible."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from proxy.errors import NotFound, ProxyError, UpstreamError
from proxy.host import Services
from proxy.models import ModelInfo
from proxy.observer import ReportLog
from proxy.settings import Upstream
from proxy.types import JSON, Call, Reply
from proxy.upstreams import members
from proxy.upstreams.affinity import LEAD, Affinity, beginning_of
from proxy.upstreams.cooldown_sharing import CooldownSharing
from proxy.upstreams.failure_tracker import FailureTracker
from proxy.upstreams.host_state import COOLDOWN_PENALTY, HostState
from proxy.upstreams.members import Member, add_origin, with_origin
from proxy.upstreams.waiting_queue import RoundRobin, WaitingCall, WaitingQueue, host_name
from proxy.upstreams.watch import POLL, Watch
from proxy.wire.ollama_models import canonical

HIGHEST_LOAD: Final = 2**60
"""More than the load of any host."""
LEAST_COOLDOWN: Final = COOLDOWN_PENALTY - LEAD
"""The smallest load of a host that cools down, since LEAD may have been subtracted."""
MOST_CACHED: Final = 1000
"""Maximum number of models whose hosts are cached."""
COLD_PENALTY: Final = 4
"""How many more calls a host that has loaded the model may have and still be preferred, if `slots` is unset."""


@dataclass(slots=True)
class Dispatch:
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
        self.cold_penalty = self.slots or COLD_PENALTY
        self.services = services
        self.queue = services.process_state(f"queue {name}", lambda: WaitingQueue(RoundRobin(), services.clock))
        self.states = [self.queue.state_of(one.url, host_name(name, one.url, len(hosts) > 1)) for one in hosts]
        self.hosts = list(zip(self.states, hosts, strict=True))
        self.only_host = hosts[0] if len(hosts) == 1 else None
        self.sharing = None if self.only_host else sharing
        self.tracker = FailureTracker(services.clock, self.sharing)
        self.affinity = None if self.only_host else services.process_state(f"affinity {name}", Affinity)
        self.hosts_by_model: dict[str, Sequence[tuple[HostState, Member]]] = {}
        self.watch = Watch(self.members, self.states, services, self.hosts_changed)

    def __call__(self, call: Call, info: ModelInfo) -> Awaitable[Reply]:
        """Raises TooMany if the queue is full or the wait too long, otherwise what the host raises."""
        if self.only_host is not None and self.slots is None:
            return self.to_only_host(self.only_host, call, info)
        return self.to_any_host(call, info)

    async def to_only_host(self, host: Member, call: Call, info: ModelInfo) -> Reply:
        try:
            return with_origin(await host(call, info), info, self.name)
        except ProxyError as error:
            add_origin(error, info, self.name)
            call.observer.placed(self.name)
            raise

    async def to_any_host(self, call: Call, info: ModelInfo) -> Reply:
        """Send the call to a host with a free slot, queueing if there is none; to another host if it was not begun."""
        if self.services.clock.monotonic() - self.watch.polled > POLL and self.only_host is None:
            await self.watch.ensure_fresh()
        name = canonical(info.name)
        dispatch = Dispatch(call, info, name, 0 if self.affinity is None else beginning_of(call, name))
        state = self.reserve_free_host(dispatch)
        while True:
            if state is None:
                state = await self.wait_for_host(dispatch)
            member = self.members.get(state.url) or self.queue.members[state.url]
            if not member.warm(name):
                self.queue.loads += 1
            dispatch.info = member.known(name) or info
            dispatch.timeout_counts = call.stream and self.timeout_counts(dispatch, member)
            try:
                reply = await member(call, dispatch.info)
            except BaseException as error:
                if not self.on_failure(dispatch, state, error):
                    raise
                state = None
            else:
                return self.on_answer(dispatch, state, reply)

    def reserve_free_host(self, dispatch: Dispatch) -> HostState | None:
        """A host whose free slot is now reserved for the call; None if the call has to wait."""
        if self.sharing is not None:
            self.sharing.refresh(self.states)
        # A new call never overtakes waiting ones, even if a host is free for it.
        if self.queue.has_waiting or (state := self.pick(dispatch.name, (), dispatch.beginning)) is None:
            return None
        return self.queue.reserve(state)

    async def wait_for_host(self, dispatch: Dispatch) -> HostState:
        """Wait in the queue for a host whose slot is reserved for the call."""
        began = self.services.clock.monotonic()
        waiting = WaitingCall(dispatch.call, dispatch.name, dispatch.tried, dispatch.beginning)
        state = await self.queue.acquire(waiting, self.queue_settings)
        dispatch.queued = (self.services.clock.monotonic() - began) * 1000
        return state

    def on_failure(self, dispatch: Dispatch, state: HostState, error: BaseException) -> bool:
        """Record that the call failed at a host.  Gives whether another host may be tried."""
        self.tracker.record_error(state, error, dispatch.timeout_counts)
        self.queue.release(state)
        if not isinstance(error, ProxyError):
            return False
        add_origin(error, dispatch.info, state.name)
        dispatch.call.observer.placed(state.name)
        dispatch.tried = (*dispatch.tried, state.url)
        return self.may_retry_elsewhere(error, state, dispatch.name, dispatch.tried)

    def on_answer(self, dispatch: Dispatch, state: HostState, reply: Reply) -> Reply:
        if self.affinity is not None and dispatch.beginning:
            self.affinity.record(dispatch.beginning, state.url)
        reply = with_origin(reply, dispatch.info, state.name)
        if dispatch.queued:
            reply = reply.noting(**{"queue-ms": f"{dispatch.queued:.1f}"})
        if dispatch.call.stream:
            self.tracker.stream_began(state)
            watched = reply.through(partial(self.tracker.watch_stream, state, dispatch.call.deadline))
            return watched.on_close(partial(self.queue.release, state))
        if not state.healthy:
            self.tracker.record_success(state)
        self.queue.release(state)  # an answer that is not streamed has been read completely
        return reply

    def timeout_counts(self, dispatch: Dispatch, member: Member) -> bool:
        """Whether a late start of a stream would be this host's fault: the call has not waited or failed before, and
        the model is loaded."""
        observer = dispatch.call.observer
        fresh = not (dispatch.queued or dispatch.tried) and not (isinstance(observer, ReportLog) and observer.failures)
        return fresh and dispatch.name in member.loaded()

    # --- which host ----------------------------------------------------------------------------------

    def pick(self, name: str, tried: Sequence[str] = (), beginning: int = 0) -> HostState | None:
        """The best host for a call to this model now; None if all that could take it are busy."""
        hosts = self.hosts_by_model.get(name) or self.hosts_with(name)
        if tried:
            hosts = [(one, member) for one, member in hosts if one.url not in tried]
        return self.least_busy(name, hosts, beginning) if hosts else self.last_resort(name, tried)

    def least_busy(self, name: str, hosts: Sequence[tuple[HostState, Member]], beginning: int) -> HostState | None:
        """The host with the smallest load: its calls, corrected for its health, prompt cache and loaded models."""
        best, least, turn, slots = None, HIGHEST_LOAD, 0, self.slots or HIGHEST_LOAD
        read = self.affinity.host_of(beginning) if self.affinity is not None and beginning else None
        for one, member in hosts:
            if one.busy >= slots:
                continue
            load = one.busy if one.healthy else one.busy + one.penalty(self.services.clock.monotonic())
            if one.url == read:
                load -= LEAD
            if load > least or (load == least and one.picked > turn):
                continue
            if not member.warm(name):
                load += self.cold_penalty
            # Among equals, the least recently chosen one, so that none is starved.
            if load < least or (load == least and one.picked < turn):
                best, least, turn = one, load, one.picked
        return None if least >= LEAST_COOLDOWN and self.any_available(hosts) else best

    def any_available(self, hosts: Iterable[tuple[HostState, Member]]) -> bool:
        """Whether at least one host is not cooling down.  Then the others get no calls, even if that one is busy."""
        now = self.services.clock.monotonic()
        return any(one.penalty(now) < COOLDOWN_PENALTY for one, _ in hosts)

    def hosts_with(self, name: str) -> Sequence[tuple[HostState, Member]]:
        """The reachable hosts that are known to have a model; cached until something changes at any host."""
        if len(self.hosts_by_model) >= MOST_CACHED:
            self.hosts_by_model.clear()
        found = [(one, member) for one, member in self.hosts if not one.out and member.known(name) is not None]
        self.hosts_by_model[name] = found
        return found

    def last_resort(self, name: str, tried: Sequence[str]) -> HostState | None:
        """The host to ask if no reachable one is known to have the model; its error tells the caller what is wrong."""
        free = [one for one in self.states if one.url not in tried and (self.slots is None or one.busy < self.slots)]
        known = [one for one in free if self.members[one.url].known(name)]
        return min(known or free, key=lambda one: (one.busy, one.picked), default=None)

    def may_retry_elsewhere(self, error: ProxyError, failed: HostState, name: str, tried: Sequence[str]) -> bool:
        """Whether to try another host: this one certainly has not begun the call, and another one has the model."""
        if isinstance(error, UpstreamError) and error.cause == "connect":
            if failed.url in self.members:
                self.watch.take_out(failed, error)
        elif not (isinstance(error, NotFound) and error.code == "model_not_found"):
            return False
        others = (one for one in self.queue.current if one.url not in tried and not one.out)
        return any(self.queue.members[one.url].known(name) for one in others)

    def hosts_changed(self) -> None:
        """Called when the state of a host has changed: clear cached hosts, and serve waiting calls if possible."""
        self.hosts_by_model.clear()
        self.queue.serve()

    def open(self) -> None:
        """Take over the hosts and the queue from the pool of the previous configuration."""
        for one in self.states:
            one.name = host_name(self.name, one.url, self.only_host is None)
            self.members[one.url].open()
        self.queue.use_pool(self.members, self.states, self.pick, self.queue_settings.group)

    def close(self) -> None:
        """Stop probing unreachable hosts; the pool that replaces this one continues."""
        for one in self.states:
            if one.probe is not None:
                one.probe.cancel()

    def mark_outdated(self, url: str) -> None:
        self.members[url].mark_outdated()
        self.watch.polled = float("-inf")

    # --- what they have ------------------------------------------------------------------------------

    def usable(self) -> list[Member]:
        return [self.members[one.url] for one in self.states if not one.out] or list(self.members.values())

    async def find(self, name: str) -> ModelInfo | None:
        """Raises UpstreamError if no host answers, or none of those that are known to have the model."""
        await self.watch.ensure_fresh()
        found = await members.find(self.usable(), name)
        self.hosts_by_model.clear()
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

    def report(self) -> JSON:
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
