"""Equal hosts as one upstream: the least busy one that has the model, loaded if possible, takes a call."""

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
from proxy.upstreams.line import Line, Turns, Waiting, named
from proxy.upstreams.members import Member, placed, told
from proxy.upstreams.outcomes import Outcomes
from proxy.upstreams.sharing import Sharing
from proxy.upstreams.standing import CLOSED, Standing
from proxy.upstreams.watch import POLL, Watch
from proxy.wire.ollama_models import canonical

log = logging.getLogger(__name__)

NEVER: Final = 2**60
COOL: Final = CLOSED - LEAD
"""The least that a host counts which cools down."""
MOST: Final = 1000
"""Models of which it is remembered who has them."""
COLD: Final = 4
"""Calls more that a host may have under way and still be preferred to one that would have to load the model,
where no number of slots says so."""


@dataclass(slots=True)
class Asking:
    """A call for a model, by its canonical name, with the beginning of its conversation.

    tried: the hosts that it has been to; queued: milliseconds that it waited for the one it is at.
    hasty: whether it should begin soon at the one it is at.
    """

    call: Call
    info: ModelInfo
    name: str
    beginning: int
    tried: tuple[str, ...] = ()
    queued: float = 0.0
    hasty: bool = False


class Pool:
    """name: the upstream's.  sharing: what other processes say of its hosts."""

    def __init__(
        self,
        name: str,
        hosts: Sequence[Member],
        settings: Upstream,
        services: Services,
        sharing: Sharing | None = None,
    ) -> None:
        self.name = name
        self.members = {host.url: host for host in hosts}
        share = services.place.share
        self.line_settings = settings.line.model_copy(update={"most": max(1, share(settings.line.most))})
        self.slots = None if settings.slots is None else share(settings.slots)
        self.cold = self.slots or COLD
        self.services = services
        self.line = services.kept(f"line {name}", lambda: Line(Turns(), services.clock))
        self.standings = [self.line.standing(one.url, named(name, one.url, len(hosts) > 1)) for one in hosts]
        self.places = list(zip(self.standings, hosts, strict=True))
        self.alone = hosts[0] if len(hosts) == 1 else None
        self.sharing = None if self.alone else sharing
        self.outcomes = Outcomes(services.clock, self.sharing)
        self.prompts = None if self.alone else services.kept(f"prompts {name}", Affinity)
        self.having: dict[str, Sequence[tuple[Standing, Member]]] = {}
        self.watch = Watch(self.members, self.standings, services, self.heard)

    def __call__(self, call: Call, info: ModelInfo) -> Awaitable[Reply]:
        """Raises TooMany when the line is full or does not move, else what the host raises."""
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
        """At a host that has room, now or in its turn; at another one if that certainly has not begun it."""
        if self.services.clock.monotonic() - self.watch.polled > POLL and self.alone is None:
            await self.watch.fresh()
        name = canonical(info.name)
        asking = Asking(call, info, name, 0 if self.prompts is None else beginning_of(call, name))
        standing = self.free(asking)
        while True:
            if standing is None:
                standing = await self.waited(asking)
            member = self.members.get(standing.url) or self.line.members[standing.url]
            if not member.warm(name):
                self.line.loads += 1
            asking.info, asking.hasty = member.known(name) or info, call.stream and self.hastens(asking, member)
            try:
                reply = await member(call, asking.info)
            except BaseException as error:
                if not self.lost(asking, standing, error):
                    raise
                standing = None
            else:
                return self.gained(asking, standing, reply)

    def free(self, asking: Asking) -> Standing | None:
        """The host that takes this call at once."""
        if self.sharing is not None:
            self.sharing.look(self.standings)
        # Nobody who comes later is served before those who wait, even if it could be.
        if self.line.waits or (standing := self.pick(asking.name, (), asking.beginning)) is None:
            return None
        return self.line.taken(standing)

    async def waited(self, asking: Asking) -> Standing:
        """In its turn, and whichever host has room then."""
        began = self.services.clock.monotonic()
        waiting = Waiting(asking.call, asking.name, asking.tried, asking.beginning)
        standing = await self.line.enter(waiting, self.line_settings)
        asking.queued = (self.services.clock.monotonic() - began) * 1000
        return standing

    def lost(self, asking: Asking, standing: Standing, error: BaseException) -> bool:
        """A host has failed.  Whether another one may take the call."""
        self.outcomes.ended(standing, error, asking.hasty)
        self.line.leave(standing)
        if not isinstance(error, ProxyError):
            return False
        placed(error, asking.info, standing.name)
        asking.call.observer.placed(standing.name)
        asking.tried = (*asking.tried, standing.url)
        return self.elsewhere(error, standing, asking.name, asking.tried)

    def gained(self, asking: Asking, standing: Standing, reply: Reply) -> Reply:
        if self.prompts is not None and asking.beginning:
            self.prompts.read(asking.beginning, standing.url)
        reply = told(reply, asking.info, standing.name)
        if asking.queued:
            reply = reply.noting(**{"queue-ms": f"{asking.queued:.1f}"})
        if asking.call.stream:
            self.outcomes.begun(standing)
            watched = reply.through(partial(self.outcomes.watched, standing, asking.call.deadline))
            return watched.on_close(partial(self.line.leave, standing))
        if not standing.well:
            self.outcomes.answered(standing)
        self.line.leave(standing)  # a whole answer has been read to its end
        return reply

    def hastens(self, asking: Asking, member: Member) -> bool:
        """Whether a stream has all of its time for this host: it has neither waited nor failed before, and no model is
        to be loaded."""
        observer = asking.call.observer
        fresh = not (asking.queued or asking.tried) and not (isinstance(observer, Heard) and observer.failures)
        return fresh and asking.name in member.loaded()

    # --- which host ----------------------------------------------------------------------------------

    def pick(self, name: str, tried: Sequence[str] = (), beginning: int = 0) -> Standing | None:
        """The host that would take a call for this model now; None if those that could are all busy."""
        places = self.having.get(name) or self.places_of(name)
        if tried:
            places = [place for place in places if place[0].url not in tried]
        return self.least_busy(name, places, beginning) if places else self.last_resort(name, tried)

    def least_busy(self, name: str, places: Sequence[tuple[Standing, Member]], beginning: int) -> Standing | None:
        """Of these the one with the least to do, counting what speaks against it and for it."""
        best, least, turn, slots = None, NEVER, 0, self.slots or NEVER
        read = self.prompts.at(beginning) if self.prompts is not None and beginning else None
        for one, member in places:
            if one.busy >= slots:
                continue
            load = one.busy if one.well else one.busy + one.burden(self.services.clock.monotonic())
            if one.url == read:
                load -= LEAD
            if load > least or (load == least and one.picked > turn):
                continue
            if not member.warm(name):
                load += self.cold
            # Among equals the one that was chosen longest ago, so that none is starved.
            if load < least or (load == least and one.picked < turn):
                best, least, turn = one, load, one.picked
        return None if least >= COOL and self.trusted(places) else best

    def trusted(self, places: Iterable[tuple[Standing, Member]]) -> bool:
        """Whether one of these is not cooling down; then those that are get no call, even if it is busy."""
        now = self.services.clock.monotonic()
        return any(one.burden(now) < CLOSED for one, _ in places)

    def places_of(self, name: str) -> Sequence[tuple[Standing, Member]]:
        """The hosts that are in and have a model, as far as known; remembered until something is heard of any."""
        if len(self.having) >= MOST:
            self.having.clear()
        found = [(one, member) for one, member in self.places if not one.out and member.known(name) is not None]
        self.having[name] = found
        return found

    def last_resort(self, name: str, tried: Sequence[str]) -> Standing | None:
        """Where no host that is in is known to have a model, whoever is asked says so; the only host is never out."""
        free = [one for one in self.standings if one.url not in tried and (self.slots is None or one.busy < self.slots)]
        known = [one for one in free if self.members[one.url].known(name)]
        return min(known or free, key=lambda one: (one.busy, one.picked), default=None)

    def elsewhere(self, error: ProxyError, failed: Standing, name: str, tried: Sequence[str]) -> bool:
        """Whether another host may take a call that this one certainly has not begun."""
        if isinstance(error, UpstreamError) and error.cause == "connect":
            if failed.url in self.members:
                self.watch.take_out(failed, error)
        elif not (isinstance(error, NotFound) and error.code == "model_not_found"):
            return False
        others = (one for one in self.line.current if one.url not in tried and not one.out)
        return any(self.line.members[one.url].known(name) for one in others)

    def heard(self) -> None:
        """What is known of the hosts has changed, and somebody who waits may go on."""
        self.having.clear()
        self.line.serve()

    def open(self) -> None:
        """From now on its hosts are as it says, and those who wait are served by what it says of them."""
        for one in self.standings:
            one.name = named(self.name, one.url, self.alone is None)
            self.members[one.url].open()
        self.line.follow(self.members, self.standings, self.pick, self.line_settings.group)

    def close(self) -> None:
        """Whoever follows looks after the hosts that are out."""
        for one in self.standings:
            if one.probe is not None:
                one.probe.cancel()

    def changed(self, url: str) -> None:
        self.members[url].changed()
        self.watch.polled = float("-inf")

    # --- what they have ------------------------------------------------------------------------------

    def usable(self) -> list[Member]:
        return [self.members[one.url] for one in self.standings if not one.out] or list(self.members.values())

    async def find(self, name: str) -> ModelInfo | None:
        """Raises UpstreamError if no host could be asked, or if none that has the model can."""
        await self.watch.fresh()
        found = await members.found(self.usable(), name)
        self.having.clear()
        return found

    async def models(self) -> Mapping[str, ModelInfo]:
        """Merged.  Raises UpstreamError if no host was ever heard of."""
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
        """Of the first host that answers.  Raises UpstreamError if none does."""
        return await members.version(list(self.members.values()))

    def told(self) -> JSON:
        """How its hosts stand, for people."""
        now = self.services.clock.monotonic()
        hosts = [
            {
                "host": one.url,
                "state": one.state(now),
                "busy": one.busy,
                "failures": one.failures,
                "loaded": sorted(self.members[one.url].loaded()),
            }
            for one in self.standings
        ]
        return {"slots": self.slots, **self.line.told(), "hosts": hosts}

    async def alive(self) -> Mapping[str, str]:
        """Host -> "" if it answers, else why not."""
        told = await asyncio.gather(*(one.version() for one in self.members.values()), return_exceptions=True)
        return {url: "" if isinstance(one, str) else str(one) for url, one in zip(self.members, told, strict=True)}
