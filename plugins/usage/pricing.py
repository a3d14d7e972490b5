"""Prices that admins set while the server runs: stored in the database, known to every process within seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from aiohttp import web
from pydantic import AfterValidator, StringConstraints
from sqlalchemy import func, insert, select

from plugins.usage.figures import document
from plugins.usage.money import money
from plugins.usage.tables import PRICES
from proxy.config import Currency, Pattern, Rate, Strict
from proxy.host import Host
from proxy.prices import Tariff
from proxy.types import JSON, Route

KINDS: Final = ("models", "cloud")


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("no name has such characters")
    return name


Printable = AfterValidator(_printable)
Named = Annotated[Pattern, Printable]


class Price(Rate):
    """A price whose `like` a database accepts: printable characters only."""

    like: Annotated[str, StringConstraints(max_length=200), Printable] = ""


class Put(Strict):
    """Prices that apply from now on, by pattern; null ends a pattern's price.  Other patterns are unchanged."""

    models: dict[Named, Price | None] = {}
    cloud: dict[Named, Price | None] = {}
    currency: Currency | None = None
    """For prices without their own; if unset, the configuration's."""


class Pricing:
    def __init__(self, host: Host) -> None:
        self.host = host
        self.prices = host.prices
        self.known: int | None = None
        """The number of rows that were read last.  Not the highest id: of two concurrent inserts, the one with the
        lower id may be committed later."""
        self.last: dict[str, list[Tariff]] = host.process_state("usage prices", dict)
        """The prices read last, by kind; they survive a reload, even if the database is unavailable then."""
        if self.last:
            self.prices.put(self.last["models"], self.last["cloud"])

    def routes(self) -> Iterable[Route]:
        yield Route("GET", "/api/admin/costs/pricing", self.get)
        yield Route("PUT", "/api/admin/costs/pricing", self.put)

    async def read(self) -> None:
        """Load prices that were set since the last check.  Raises Busy while the database is unavailable."""
        async with self.host.database.reading() as connection:
            query = select(func.count()).select_from(PRICES)
            if (await connection.execute(query)).scalar_one() == self.known:
                return
            rows = (await connection.execute(select(PRICES).order_by(PRICES.c.id))).mappings().all()
        self.last |= {kind: [tariff_of(dict(row)) for row in rows if row["kind"] == kind] for kind in KINDS}
        self.prices.put(self.last["models"], self.last["cloud"])
        self.known = len(rows)

    async def get(self, request: web.BaseRequest) -> web.StreamResponse:
        await self.read()
        energy = self.prices.energy
        told: dict[str, JSON] = {
            "currency": energy.currency,
            "models": listed(self.prices.models.tariffs),
            "cloud": listed(self.prices.cloud.tariffs),
            "energy": {
                "per_kwh": money(energy.per_kwh),
                "watts": {
                    name: {"idle": idle / 1000, "busy": busy / 1000}
                    for name, (idle, busy) in (energy.watts or {}).items()
                },
            },
        }
        return document(told)

    async def put(self, request: web.BaseRequest) -> web.StreamResponse:
        form = await self.host.requests.form(request, Put)
        by, now = self.host.requests.caller(request).name, int(self.host.clock.time() * 1e6)
        currency = form.currency or self.prices.energy.currency
        given: Mapping[str, Mapping[str, Price | None]] = {"models": form.models, "cloud": form.cloud}
        rows = [
            {"at": now, "kind": kind, "pattern": pattern, "set_by": by, **columns(rate, currency)}
            for kind, rates in given.items()
            for pattern, rate in rates.items()
        ]
        if rows:
            async with self.host.database.writing() as connection:
                await connection.execute(insert(PRICES), rows)
        return await self.get(request)


def columns(rate: Price | None, currency: str) -> dict[str, Any]:
    if rate is None:
        return {"currency": currency, "input": 0, "output": 0, "cached": None, "ended": 1, "like": ""}
    return {
        "currency": rate.currency or currency,
        "input": int(rate.input.scaleb(9)),
        "output": int(rate.output.scaleb(9)),
        "cached": None if rate.cached is None else int(rate.cached.scaleb(9)),
        "ended": 0,
        "like": rate.like,
    }


def tariff_of(row: Mapping[str, Any]) -> Tariff:
    amounts = row["input"], row["output"], row["cached"]
    return Tariff(row["pattern"], row["at"] / 1e6, row["currency"], *amounts, bool(row["ended"]), row["like"])


def listed(tariffs: Iterable[Tariff]) -> dict[str, JSON]:
    """By pattern, the newest first; prices per million tokens."""
    told: defaultdict[str, list[JSON]] = defaultdict(list)
    for one in sorted(tariffs, key=lambda one: (one.pattern, -one.since)):
        since = datetime.fromtimestamp(one.since, UTC).isoformat()
        prices: dict[str, JSON] = {"input": money(one.input), "output": money(one.output), "cached": money(one.cached)}
        if one.ended:
            prices = dict.fromkeys(prices)
        like = {"like": one.like} if one.like else {}
        told[one.pattern].append({"valid_from": since, "currency": one.currency, **prices, **like})
    return dict(told)
