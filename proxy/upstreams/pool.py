"""Equal hosts as one upstream: the least busy one that has the model, loaded if possible, takes a call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from proxy.errors import NotFound, ProxyError, UpstreamError
from proxy.host import Services
from proxy.models import ModelInfo
from proxy.settings import Upstream
from proxy.types import JSON, Call, Reply
from proxy.upstreams import members
from proxy.upstreams.line import Line, Standing, Turns, Waiting
from proxy.upstreams.members import Member
from proxy.wire.ollama_models import canonical

log = logging.getLogger(__name__)

POLL: Final = 2.0
"""Seconds after which the hosts are asked again what they have, while calls come in."""
BELIEVED: Final = 30.0
"""Seconds after which a call waits for their answers."""
PATIENCE: Final = 1.0
"""Seconds that it waits at most: one host that hangs does not hold up the others."""
PROBE: Final = 1.0
"""Seconds between two looks at a host that is out."""
NEVER: Final = 2**200
RESTS: Final = 2**150
FAULTS: Final = ("server", "cut", "load", "memory")
"""Failures that speak against a host."""
FIRST: Final = 1.0
"""Seconds for which one that failed comes last; twice as long after each further failure in a row."""
LONGEST: Final = 30.0
TURNS: Final = 64
"""Bits of the running number of choices."""
MOST: Final = 1000
"""Models of which it is remembered who has them."""
COLD: Final = 4
"""Calls more that a host may have under way and still be preferred to one that would have to load the model,
where no number of slots says so."""


class Pool:
    """name: the upstream's."""

    def __init__(self, name: str, hosts: Sequence[Member], settings: Upstream, services: Services) -> None:
        self.name = name
        self.members = {host.url: host for host in hosts}
        share = services.place.share
        self.line_settings = settings.line.model_copy(update={"most": max(1, share(settings.line.most))})
        self.slots = None if settings.slots is None else share(settings.slots)
        self.cold = self.slots or COLD
        self.services = services
        self.line = services.kept(f"line {name}", lambda: Line(Turns(), services.clock))
        self.standings = [self.line.standing(host.url, name, len(hosts) > 1) for host in hosts]
        self.places = list(zip(self.standings, hosts, strict=True))
        self.alone = hosts[0] if len(hosts) == 1 else None
        self.having: dict[str, Sequence[tuple[Standing, Member]]] = {}
        self.polled = float("-inf")
        self.polling: asyncio.Task[None] | None = None

    async def __call__(self, call: Call, info: ModelInfo) -> Reply:
        """Raises TooMany when the line is full or does not move, else what the host raises."""
        if self.alone is not None and self.slots is None:
            try:
                return told(await self.alone(call, info), info, self.name)
            except ProxyError as error:
                placed(error, info, self.name)
                raise
        if self.services.clock.monotonic() - self.polled > POLL:
            await self.fresh()
        name = canonical(info.name)
        # Nobody who comes later is served before those who wait, even if it could be.
        if self.line.order or (standing := self.pick(name)) is None:
            return await self.waited(call, info, name)
        try:
            return await self.asked(call, info, name, self.line.taken(standing))
        except ProxyError as error:
            return await self.another(call, info, name, standing, error)

    async def asked(self, call: Call, info: ModelInfo, name: str, standing: Standing) -> Reply:
        member = self.members[standing.url]
        mine = member.known(name) or info
        try:
            reply = await member(call, mine)
        except BaseException as error:
            if isinstance(error, UpstreamError):
                self.rest(standing, error)
            self.line.leave(standing)
            if isinstance(error, ProxyError):
                placed(error, mine, standing.name)
            raise
        if standing.failures:
            standing.failures = 0
        if call.stream:
            return told(reply, mine, standing.name).on_close(partial(self.line.leave, standing))
        self.line.leave(standing)  # a whole answer has been read to its end
        return told(reply, mine, standing.name)

    async def waited(self, call: Call, info: ModelInfo, name: str, tried: tuple[str, ...] = ()) -> Reply:
        """In its turn, and at whichever host has room then."""
        standing = await self.line.enter(Waiting(call, name, tried), self.line_settings)
        try:
            return await self.asked(call, info, name, standing)
        except ProxyError as error:
            return await self.another(call, info, name, standing, error, tried)

    async def another(
        self, call: Call, info: ModelInfo, name: str, failed: Standing, error: ProxyError, tried: tuple[str, ...] = ()
    ) -> Reply:
        """The same of another host, if there is one that may take it; else the error."""
        tried = (*tried, failed.url)
        if not self.elsewhere(error, failed, name, tried):
            raise error
        return await self.waited(call, info, name, tried)

    # --- which host ----------------------------------------------------------------------------------

    def pick(self, name: str, tried: Sequence[str] = ()) -> Standing | None:
        """The host that would take a call for this model now; None if those that could are all busy."""
        best, least, slots, untried = None, NEVER, self.slots or NEVER, False
        places = self.having.get(name) or self.places_of(name)
        for one, member in places:
            if one.url in tried:
                continue
            untried = True
            if one.busy >= slots:
                continue
            # Among equals the one that was chosen longest ago, so that none is starved.
            cost = (one.busy + (0 if member.warm(name) else self.cold)) << TURNS | one.picked
            if one.failures and one.rests > self.services.clock.monotonic():
                cost += RESTS
            if cost < least:
                best, least = one, cost
        return best if untried else self.last_resort(name, tried)

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

    def rest(self, one: Standing, error: UpstreamError) -> None:
        """A host that fails at once has always the fewest calls; let others go before it for a while."""
        if error.cause in FAULTS:
            one.failures += 1
            seconds = min(LONGEST, FIRST * 2.0 ** (one.failures - 1))
            one.rests = self.services.clock.monotonic() + seconds

    def elsewhere(self, error: ProxyError, failed: Standing, name: str, tried: Sequence[str]) -> bool:
        """Whether another host may take a call that this one certainly has not begun."""
        if isinstance(error, UpstreamError) and error.cause == "connect":
            self.take_out(failed, error)
        elif not (isinstance(error, NotFound) and error.code == "model_not_found"):
            return False
        others = (one for one in self.standings if one.url not in tried and not one.out)
        return any(self.members[one.url].known(name) for one in others)

    # --- what is known of them -----------------------------------------------------------------------

    async def fresh(self) -> None:
        """See to it that what the hosts have is known, and not long ago."""
        age = self.services.clock.monotonic() - self.polled
        if self.alone is not None or age <= POLL:
            return
        if self.polling is None or self.polling.done():
            self.polling = self.services.background.start(self.poll(), "asking the hosts of a pool")
        if age > BELIEVED:
            await asyncio.wait([self.polling], timeout=PATIENCE)

    async def poll(self) -> None:
        for one in self.standings:
            if one.out and one.probe is None:  # found out by a pipeline that is gone
                self.start_probe(one)
        asked = [one for one in self.standings if not one.out]
        told = await asyncio.gather(*(self.members[one.url].poll() for one in asked), return_exceptions=True)
        for one, error in zip(asked, told, strict=True):
            if isinstance(error, UpstreamError):
                self.take_out(one, error)
            elif isinstance(error, BaseException):
                raise error
        self.polled = self.services.clock.monotonic()
        self.heard()

    def heard(self) -> None:
        """What is known of the hosts has changed, and somebody who waits may go on."""
        self.having.clear()
        self.line.serve()

    def take_out(self, one: Standing, error: UpstreamError) -> None:
        if self.alone is None and not one.out:
            log.warning("%s is asked no more until it answers: %s", one.url, error)
            one.out = True
            self.having.clear()
            self.start_probe(one)

    def start_probe(self, one: Standing) -> None:
        one.probe = self.services.background.start(self.probe(one), f"looking after {one.url}")

    async def probe(self, one: Standing) -> None:
        """Until the host answers again; no model is run."""
        try:
            while True:
                await self.services.clock.sleep(PROBE)
                try:
                    await self.members[one.url].poll()
                except UpstreamError:
                    continue
                break
            one.out = False
            log.info("%s answers again", one.url)
            self.heard()
        finally:
            one.probe = None

    def open(self) -> None:
        """From now on those who wait are served by what this pool says of the hosts."""
        self.line.pick = self.pick
        self.line.serve()

    def close(self) -> None:
        """Whoever follows looks after the hosts that are out."""
        for one in self.standings:
            if one.probe is not None:
                one.probe.cancel()

    def changed(self, url: str) -> None:
        self.members[url].changed()
        self.polled = float("-inf")

    # --- what they have ------------------------------------------------------------------------------

    def usable(self) -> list[Member]:
        there = [one for one in self.standings if not one.out] or self.standings
        return [self.members[one.url] for one in there]

    async def find(self, name: str) -> ModelInfo | None:
        """Raises UpstreamError if no host could be asked, or if none that has the model can."""
        await self.fresh()
        found = await members.found(self.usable(), name)
        self.having.clear()
        return found

    async def models(self) -> Mapping[str, ModelInfo]:
        """Merged.  Raises UpstreamError if no host was ever heard of."""
        return await members.models(self.usable())

    async def running(self) -> list[JSON]:
        """Raises UpstreamError only if no host answers."""
        return await members.running(self.usable())

    async def show(self, body: Mapping[str, JSON]) -> bytes:
        name, there = canonical(str(body.get("model", ""))), self.usable()
        return await next((one for one in there if one.known(name)), there[0]).show(body)

    async def version(self) -> str:
        """Of the first host that answers.  Raises UpstreamError if none does."""
        return await members.version(list(self.members.values()))

    async def alive(self) -> Mapping[str, str]:
        """Host -> "" if it answers, else why not."""
        told = await asyncio.gather(*(one.version() for one in self.members.values()), return_exceptions=True)
        return {url: "" if isinstance(one, str) else str(one) for url, one in zip(self.members, told, strict=True)}


def placed(error: ProxyError, info: ModelInfo, upstream: str) -> ProxyError:
    """A failure that says where it happened."""
    error.facts.setdefault("model", info.name)
    error.facts.setdefault("upstream", upstream)
    return error


def told(reply: Reply, info: ModelInfo, upstream: str) -> Reply:
    """The reply with what is to be known of where it comes from."""
    facts = {"model": info.name, "upstream": upstream, "digest": info.digest[:10]}
    return Reply(reply.events, {**facts, **reply.facts} if reply.facts else facts, reply.closers)
