"""The record of calls: receives the figures of every call, and stores them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from pydantic import PositiveInt

from plugins.usage.api import Api
from plugins.usage.attempts import Attempts
from plugins.usage.caller_data import CallerRecords
from plugins.usage.costs import Costs
from plugins.usage.export import Export
from plugins.usage.organization import Organization
from plugins.usage.pricing import Pricing
from plugins.usage.ratings import Ratings
from plugins.usage.retention import Retention
from plugins.usage.rows import fallback_row
from plugins.usage.tables import FEATURE
from plugins.usage.writer import Writer
from proxy.announcements import Attempt, AttemptsAsked, CallEnded, FellBack
from proxy.config import Strict
from proxy.errors import Busy
from proxy.host import Host, PeriodicTasks
from proxy.meter import metered
from proxy.page import Page
from proxy.types import Call, Handler, Reply, Route

log = logging.getLogger(__name__)
LOOK: Final = 2.0
"""Seconds between two checks for new prices."""
TIDY: Final = 3600.0
"""Seconds between two deletions of old rows."""
PATIENCE: Final = 5.0
"""Seconds that writing the last records may take at shutdown."""


class Usage:
    """Records every call with its times, tokens and cost, and shows figures of them.

    Goes first in the chain, so that calls which later plugins refuse are recorded, too.  Records are written in the
    background, at most half a second after a call has ended; no call waits for the database.
    """

    place = "records"
    measures = True
    tables = FEATURE

    class Settings(Strict):
        pending: PositiveInt = 100_000
        """Records that each process keeps while the database is away; further ones are lost, which the log and the
        dashboard say."""
        keep_days: PositiveInt | None = 90
        """Days for which records of single calls are kept; daily sums stay.  If unset, forever."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self.settings = settings
        self.host = host
        self.writer = host.process_state("usage writer", lambda: Writer(host.database, host.clock))
        self.writer.most = self.writer.most or settings.pending
        host.once_adopted(self.adopted)
        self.retention = Retention(settings.keep_days, host.database, host.clock)
        self.pricing = Pricing(host)
        self.attempts = Attempts(self.writer, host)
        self.periodic = PeriodicTasks(host.background)
        host.register_caller_data(CallerRecords(self.writer, host))
        host.on(CallEnded, self.writer.add)
        host.on(Attempt, self.writer.tried)
        host.on(FellBack, self.fell_back)
        host.on(AttemptsAsked, self.attempts.asked)

    def adopted(self) -> None:
        self.writer.most = self.settings.pending

    def __call__(self, call: Call, call_next: Handler) -> Awaitable[Reply]:
        return metered(call, call_next, self.host)

    def fell_back(self, one: FellBack) -> None:
        self.writer.add(fallback_row(one, self.host.clock.time()))

    async def __aenter__(self) -> Self:
        with suppress(Busy):  # an unavailable database must not keep a new configuration from being used
            await self.pricing.read()
        start = self.host.background.start
        if self.writer.task is None:  # one writer serves the pipelines of all later reloads, too
            self.writer.task = start(self.writer.run(), "writing records of usage")
        self.periodic.every(LOOK, self.pricing.read, "looking for new prices")
        self.periodic.every(TIDY, self.retention.tidy, "deleting old records of usage", calm=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.periodic.end()
        await self.writer.close(PATIENCE)

    def routes(self) -> Iterable[Route]:
        for part in (
            Api(self.writer, self.host),
            Ratings(self.writer, self.host),
            Costs(self.host),
            self.pricing,
            Organization(self.host),
            Export(self.host),
            Page("/dashboard", Path(__file__).with_name("page.html")),
        ):
            yield from part.routes()
