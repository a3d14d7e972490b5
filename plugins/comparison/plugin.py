"""Sends the same question to several models, stores their answers, and ranks the models by wins."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

from pydantic import PositiveInt

from plugins.comparison.api import Api
from plugins.comparison.retention import EVERY, Retention
from plugins.comparison.store import Limits, Store
from plugins.comparison.tables import FEATURE
from proxy.config import Strict
from proxy.host import Host, PeriodicTasks
from proxy.page import Page
from proxy.types import Route

MIB: Final = 1024 * 1024


class Comparison:
    """Asks several models the same, side by side, with figures, votes, judges and a ranking; it goes into no chain."""

    tables = FEATURE

    class Settings(Strict):
        at_once: PositiveInt = 2
        """Models of one comparison that are asked at the same time, and verdicts of its judge.  More on one GPU evict
        each other from its memory; several hosts can do more."""
        keep_days: PositiveInt | None = 365
        """Days for which a comparison is stored.  If unset, until it is deleted."""
        max_comparisons: PositiveInt = 10_000
        """Comparisons that are stored per caller; the oldest are deleted first."""
        max_bytes: PositiveInt = 4 * MIB
        """Bytes of one question, and of all its answers together, that are stored; a longer question is refused, longer
        answers are stored shortened."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self.host = host
        self.store = Store(host, Limits(settings.max_comparisons, settings.max_bytes))
        self.retention = Retention(self.store, settings.keep_days)
        self.api = Api(self.store, host, settings.at_once)
        self.periodic = PeriodicTasks(host.background)
        host.register_caller_data(self.retention)

    def routes(self) -> Iterable[Route]:
        yield from self.api.routes()
        yield from Page("/compare", Path(__file__).with_name("page.html")).routes()

    async def __aenter__(self) -> Self:
        self.periodic.every(EVERY, self.retention.tidy, "deleting old comparisons", calm=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.periodic.end()
