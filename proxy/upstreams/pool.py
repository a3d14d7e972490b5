"""Equal hosts as one upstream: the least busy one that has the model, loaded if possible, takes a call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Collection, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

from proxy.errors import NotFound, ProxyError, UpstreamError
from proxy.host import Services
from proxy.models import ModelInfo
from proxy.settings import Upstream
from proxy.types import JSON, Call, Reply
from proxy.upstreams.line import FirstCome, Line, Standing
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
NEVER: Final = (2**62, 0)
COLD: Final = 4
"""Calls more that a host may have under way and still be preferred to one that would have to load the model,
where no number of slots says so."""


class Member(Protocol):
    """One host of a pool."""

    url: str

    def __call__(self, call: Call, info: ModelInfo) -> Awaitable[Reply]: ...

    async def models(self) -> Mapping[str, ModelInfo]:
        """By canonical name.  Raises UpstreamError if none was ever told."""

    async def find(self, name: str) -> ModelInfo | None: ...

    def known(self, name: str) -> ModelInfo | None:
        """By canonical name, as last told, without asking."""

    def warm(self, name: str) -> bool:
        """Whether a model, by canonical name, is loaded or being loaded, as far as known."""

    async def poll(self) -> None:
        """Bring what is known up to date.  Raises UpstreamError."""

    def changed(self) -> None:
        """What is known of its models may not be so any more."""

    async def running(self) -> list[JSON]: ...

    async def show(self, body: Mapping[str, JSON]) -> bytes: ...

    async def version(self) -> str: ...


class Pool:
    """name: the upstream's."""

    def __init__(self, name: str, members: Sequence[Member], settings: Upstream, services: Services) -> None:
        self.members = {member.url: member for member in members}
        self.line_settings = settings.line
        self.slots = None if settings.slots is None else services.place.share(settings.slots)
        self.cold = self.slots or COLD
        self.services = services
        self.line = services.kept(f"line {name}", lambda: Line(FirstCome(), services.clock))
        self.standings = [self.line.standing(member.url) for member in members]
        self.places = list(zip(self.standings, members, strict=True))
        self.alone = members[0] if len(members) == 1 else None
        self.polled = float("-inf")
        self.polling: asyncio.Task[None] | None = None

    async def __call__(self, call: Call, info: ModelInfo) -> Reply:
        """Raises TooMany when the line is full or does not move, else what the host raises."""
        if self.alone is not None and self.slots is None:
            return await self.alone(call, info)
        if self.services.clock.monotonic() - self.polled > POLL:
            await self.fresh()
        name, tried = canonical(info.name), set[str]()
        pick = partial(self.pick, name, tried)
        while True:
            standing = self.line.pass_by(pick) or await self.line.enter(call, pick, self.line_settings)
            member = self.members[standing.url]
            mine = member.known(name) or info
            try:
                reply = await member(call, mine)
            except BaseException as error:
                self.line.leave(standing)
                tried.add(standing.url)
                if not (isinstance(error, ProxyError) and self.elsewhere(error, standing, name, tried)):
                    raise
                continue
            if self.alone is None:
                reply = reply.noting(host=standing.name, digest=mine.digest[:10])
            if call.stream:
                return reply.on_close(partial(self.line.leave, standing))
            self.line.leave(standing)  # a whole answer has been read to its end
            return reply

    # --- which host ----------------------------------------------------------------------------------

    def pick(self, name: str, tried: Collection[str] = ()) -> Standing | None:
        """The host that would take a call for this model now; None if those that could are all busy."""
        best, least = None, NEVER
        there = False
        for one, member in self.places:
            if one.out or one.url in tried or member.known(name) is None:
                continue
            there = True
            if self.slots is not None and one.busy >= self.slots:
                continue
            # Among equals the one that was chosen longest ago, so that none is starved.
            cost = one.busy + (0 if member.warm(name) else self.cold), one.picked
            if cost < least:
                best, least = one, cost
        return best if there else self.last_resort(name, tried)

    def last_resort(self, name: str, tried: Collection[str]) -> Standing | None:
        """Where no host that is in is known to have a model, whoever is asked says so; the only host is never out."""
        free = [one for one in self.standings if one.url not in tried and (self.slots is None or one.busy < self.slots)]
        known = [one for one in free if self.members[one.url].known(name)]
        return min(known or free, key=lambda one: (one.busy, one.picked), default=None)

    def elsewhere(self, error: ProxyError, failed: Standing, name: str, tried: Collection[str]) -> bool:
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
        self.line.serve()

    def take_out(self, one: Standing, error: UpstreamError) -> None:
        if self.alone is None and not one.out:
            log.warning("%s is asked no more until it answers: %s", one.url, error)
            one.out = True
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
            self.line.serve()
        finally:
            one.probe = None

    def close(self) -> None:
        """Whoever follows looks after the hosts that are out."""
        for one in self.standings:
            if one.probe is not None:
                one.probe.cancel()

    def changed(self, url: str) -> None:
        self.members[url].changed()

    # --- what they have ------------------------------------------------------------------------------

    def usable(self) -> list[Member]:
        there = [one for one in self.standings if not one.out] or self.standings
        return [self.members[one.url] for one in there]

    async def find(self, name: str) -> ModelInfo | None:
        """Raises UpstreamError if no host could be asked, or if none that has the model can."""
        await self.fresh()
        canonically = canonical(name)
        failed: UpstreamError | None = None
        for member in self.usable():
            if member.known(canonically):
                try:
                    if found := await member.find(name):
                        return found
                except UpstreamError as error:
                    failed = error
        if failed is not None:
            raise failed
        told = await asyncio.gather(*(one.find(name) for one in self.usable()), return_exceptions=True)
        return first_of(told)

    async def models(self) -> Mapping[str, ModelInfo]:
        """Merged; a host that is away takes nothing from what the others have."""
        lists = await asyncio.gather(*(one.models() for one in self.usable()), return_exceptions=True)
        answered = [listed for listed in lists if not isinstance(listed, BaseException)]
        if not answered:
            raise raised(lists)
        return {name: info for listed in reversed(answered) for name, info in listed.items()}

    async def running(self) -> list[JSON]:
        """Raises UpstreamError only if no host answers."""
        lists = await asyncio.gather(*(one.running() for one in self.usable()), return_exceptions=True)
        answered = [listed for listed in lists if not isinstance(listed, BaseException)]
        if not answered:
            raise raised(lists)
        return [entry for listed in answered for entry in listed]

    async def show(self, body: Mapping[str, JSON]) -> bytes:
        name = canonical(str(body.get("model", "")))
        members = self.usable()
        return await next((one for one in members if one.known(name)), members[0]).show(body)

    async def version(self) -> str:
        """Of the first host that answers.  Raises UpstreamError if none does."""
        told = await asyncio.gather(*(one.version() for one in self.members.values()), return_exceptions=True)
        for one in told:
            if isinstance(one, str):
                return one
        raise raised(told)


def first_of(told: Sequence[ModelInfo | BaseException | None]) -> ModelInfo | None:
    """What the first host says that knows something; its error only if all have failed."""
    for one in told:
        if isinstance(one, ModelInfo):
            return one
    if all(isinstance(one, BaseException) for one in told):
        raise raised(told)
    return None


def raised(told: Sequence[object]) -> BaseException:
    return next(one for one in told if isinstance(one, BaseException))
