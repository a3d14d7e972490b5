"""Shares the cool-downs of hosts with other processes and servers, through a store."""

from __future__ import annotations

from collections.abc import Sequence
from socket import gethostname
from typing import Final
from urllib.parse import urlsplit

import orjson

from proxy.background import Background
from proxy.clock import Clock
from proxy.stores.keyvalue import KeyValue, NewValue, StoreError
from proxy.upstreams.host_state import COOLDOWN_AFTER, LONGEST_REST, HostState

PREFIX: Final = "host:"
LOOK_UP_EVERY: Final = 1.0
"""Minimum seconds between two look-ups of what others report; they are caused by calls."""


class CooldownSharing:
    """Writes and reads in the background: no call waits for the store, and its failures have no other effect."""

    def __init__(self, store: KeyValue, background: Background, clock: Clock) -> None:
        self.store = store
        self.background = background
        self.clock = clock
        self.refreshed = float("-inf")

    def key(self, one: HostState) -> str:
        """The host's key in the store, with this machine's name if the address is a loopback one."""
        host = urlsplit(one.url).hostname or ""
        here = f"{gethostname()}:" if host in ("localhost", "::1") or host.startswith("127.") else ""
        return f"{PREFIX}{here}{one.url}"

    def report_cooldown(self, one: HostState, seconds: float) -> None:
        """Report that a host has begun to cool down."""
        value = orjson.dumps({"failures": one.failures, "until": self.clock.time() + seconds})
        self.background.start(self.write(NewValue(self.key(one), value, seconds)), "telling of a host that cools down")

    def report_recovery(self, one: HostState) -> None:
        """Report that a host no longer cools down."""
        self.background.start(self.delete(self.key(one)), "telling of a host that is well again")

    def refresh(self, states: Sequence[HostState]) -> None:
        if self.clock.monotonic() - self.refreshed > LOOK_UP_EVERY:
            self.refreshed = self.clock.monotonic()
            self.background.start(self.read(states), "asking which hosts cool down")

    async def write(self, new: NewValue) -> None:
        try:
            await self.store.set([new])
        except StoreError:  # the store has logged it
            return

    async def delete(self, key: str) -> None:
        try:
            await self.store.delete([key])
        except StoreError:
            return

    async def read(self, states: Sequence[HostState]) -> None:
        try:
            found = await self.store.get([self.key(one) for one in states])
        except StoreError:
            return
        for one, kept in zip(states, found, strict=True):
            self.apply(one, 0.0 if kept is None else remaining(kept.value, self.clock.time()))

    def apply(self, one: HostState, seconds: float) -> None:
        """Apply what others report.  seconds: for which the host still cools down; 0 if nothing is reported."""
        if seconds and (one.reported or not one.failures):
            one.failures, one.rests_until = COOLDOWN_AFTER, self.clock.monotonic() + seconds
            one.healthy, one.reported = False, True
        elif not seconds and one.reported and one.rests_until > self.clock.monotonic():
            one.recover(self.clock.monotonic())  # the trial of another process succeeded


def remaining(value: bytes, now: float) -> float:
    """Seconds that are left of a stored cool-down, at most LONGEST; 0 if it is over or the value is invalid."""
    try:
        left = float(orjson.loads(value)["until"]) - now
    except (ValueError, KeyError, TypeError):
        return 0.0
    return min(left, LONGEST_REST) if left > 0 else 0.0
