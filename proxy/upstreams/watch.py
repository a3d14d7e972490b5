"""Polls the hosts of a pool while calls come in, and probes those that are out of service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from proxy.errors import UpstreamError
from proxy.host import Services
from proxy.upstreams.host_state import HostState
from proxy.upstreams.members import Member

log = logging.getLogger(__name__)

POLL: Final = 2.0
"""Seconds after which the hosts' models are polled again, while calls come in."""
BELIEVED: Final = 30.0
"""Seconds after which what is known is too old, and a call waits for the poll."""
PATIENCE: Final = 1.0
"""Maximum seconds of this wait, so that one host that hangs does not delay the others."""
PROBE: Final = 1.0
"""Seconds between two probes of a host that is out."""


class Watch:
    """changed: called when the state of a host has changed.  The only host is neither polled nor taken out."""

    def __init__(
        self,
        members: Mapping[str, Member],
        states: Sequence[HostState],
        services: Services,
        changed: Callable[[], None],
    ) -> None:
        self.members = members
        self.states = states
        self.services = services
        self.changed = changed
        self.has_one_host = len(states) == 1
        self.polled = float("-inf")
        self.polling: asyncio.Task[None] | None = None

    async def ensure_fresh(self) -> None:
        """Start a poll if the last one is old; wait for it, briefly, if that is too old to be used."""
        age = self.services.clock.monotonic() - self.polled
        if self.has_one_host or age <= POLL:
            return
        if self.polling is None or self.polling.done():
            self.polling = self.services.background.start(self.poll(), "asking the hosts of a pool")
        if age > BELIEVED:
            await asyncio.wait([self.polling], timeout=PATIENCE)

    async def poll(self) -> None:
        for one in self.states:
            if one.out and (one.probe is None or one.probe.done()):  # taken out by the previous pipeline
                self.start_probe(one)
        asked = [one for one in self.states if not one.out]
        told = await asyncio.gather(*(self.members[one.url].poll() for one in asked), return_exceptions=True)
        for one, error in zip(asked, told, strict=True):
            if isinstance(error, UpstreamError):
                self.take_out(one, error)
            elif isinstance(error, BaseException):
                raise error
        self.polled = self.services.clock.monotonic()
        self.changed()

    def take_out(self, one: HostState, error: UpstreamError) -> None:
        if not self.has_one_host and not one.out:
            log.warning("%s gets no calls until it answers again: %s", one.url, error)
            one.out = True
            self.changed()
            self.start_probe(one)

    def start_probe(self, one: HostState) -> None:
        one.probe = self.services.background.start(self.probe(one), f"looking after {one.url}")

    async def probe(self, one: HostState) -> None:
        """Poll until the host answers again; no model is run."""
        try:
            while True:
                await self.services.clock.sleep(PROBE)
                try:
                    await self.members[one.url].poll()
                except UpstreamError:
                    continue
                break
            one.mark_reachable(self.services.clock.monotonic())
            log.info("%s answers again", one.url)
            self.changed()
        finally:
            one.probe = None
