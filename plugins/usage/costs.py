"""The endpoints for costs: users see their own, admins everybody's.  Currencies are never added up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, Final, Literal

from aiohttp import web
from pydantic import Field, model_validator

from plugins.usage import figures
from plugins.usage.figures import DAY, MICRO, Window, WithUser, document
from plugins.usage.money import begin, day_of, midnight, money, next_month
from proxy.host import Host
from proxy.prices import Energy, rounded
from proxy.types import JSON, Route

MOST: Final = 3660
"""Maximum days of a request."""
COLUMNS: Final = (
    "calls", "prompt_tokens", "completion_tokens", "cached_tokens", "thinking_tokens", "hits", "shared", "priced",
    "cost", "prompt_cost", "saved", "compared", "cloud", "energy_mj", "power",
)  # fmt: skip
MONEY: Final = ("cost", "saved", "cloud", "power")
BY: Final = {"model": "model", "user": "caller", "key": "key_id", "template": "template", "day": "start"}


class Period(WithUser):
    """The current day, week or month so far, in UTC; or the days `from` to `to`, both included."""

    period: Literal["day", "week", "month"] | None = None
    since: date | None = Field(None, alias="from")
    to: date | None = None

    @model_validator(mode="after")
    def _one(self) -> Period:
        if self.to is not None and self.since is None:
            raise ValueError("`to` needs `from`")
        if self.since is not None and self.period is not None:
            raise ValueError("send `period`, or `from` and `to`")
        if self.since and self.to and not 0 <= (self.to - self.since).days < MOST:
            raise ValueError(f"`to` is `from` or a later day, and not {MOST} days later")
        return self

    def days(self, now: float) -> tuple[date, date]:
        """The first day, and the one after the last."""
        today = day_of(now)
        if self.since is None:
            return begin(self.period or "month", today), today + timedelta(1)
        last = self.to if self.to is not None else max(self.since, today)
        earliest = max(last, date.min + timedelta(MOST)) - timedelta(MOST)
        return max(self.since, earliest), min(last, date.max - timedelta(1)) + timedelta(1)

    def window(self, now: float, caller: str | None) -> Window:
        first, after = self.days(now)
        return Window(midnight(first), midnight(after), DAY, caller)


class Breakdown(Period):
    by: Literal["model", "user", "key", "template", "day"] = "model"


class Costs:
    def __init__(self, host: Host) -> None:
        self.host = host

    def routes(self) -> Iterable[Route]:
        yield Route("GET", "/api/costs/summary", self.summary, "user")
        yield Route("GET", "/api/costs/projection", self.projection, "user")
        yield Route("GET", "/api/costs/breakdown", self.breakdown, "user")
        yield Route("GET", "/api/admin/costs/all", self.all)

    async def read(self, window: Window, *by: str) -> list[dict[str, Any]]:
        return await figures.read(self.host.database, window, *by, "currency", "upstream", columns=COLUMNS)

    async def summary(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = self.host.requests.query(request, Period)
        window = self.window(request, asked)
        models = await self.read(window, "model")
        parts = grouped(models, "model")
        breakdown = [{"model": name or None, **self.as_json(parts[name])} for name in sorted(parts)]
        return document({**self.span(asked, window), **self.as_json(models), "breakdown": breakdown})

    async def projection(self, request: web.BaseRequest) -> web.StreamResponse:
        """The expected cost of the month, extrapolated from its days so far."""
        asked = self.host.requests.query(request, WithUser)
        now = self.host.clock.time()
        today = day_of(now)
        first, end = midnight(today.replace(day=1)), midnight(next_month(today))
        window = Window(first, midnight(today + timedelta(1)), DAY, self.whose(request, asked))
        found = await self.read(window)
        passed = max(DAY, int(now) - first)
        by = [projected(currency, some, passed, end - first) for currency, some in currencies(found)]
        only = by[0] if len(by) == 1 else dict.fromkeys(projected("", (), DAY, DAY))
        days = {"month": f"{today:%Y-%m}", "days_passed": round(passed / DAY, 2), "days_in_month": (end - first) // DAY}
        unpriced = {"unpriced_requests": total(found, "calls") - total(found, "priced")}
        return document({**days, "user": window.caller, **only, **unpriced, "by_currency": by})

    async def breakdown(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = self.host.requests.query(request, Breakdown)
        window, column = self.window(request, asked), BY[asked.by]
        parts = grouped(await self.read(window, column), column)
        rows = [{asked.by: spelled(asked.by, value), **self.as_json(parts[value])} for value in sorted(parts)]
        return document({**self.span(asked, window), "by": asked.by, "rows": rows})

    async def all(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = self.host.requests.query(request, Period)
        window = self.window(request, asked)
        # The total includes users whose data was deleted; they are in no row.
        found, users = await self.read(window), grouped(await self.read(window, "caller"), "caller")
        rows = [{"user": name, **self.as_json(users[name])} for name in sorted(users)]
        return document({**self.span(asked, window), **self.as_json(found), "users": rows})

    def as_json(self, found: Sequence[Mapping[str, Any]]) -> dict[str, JSON]:
        return costs_as_json(found, self.host.prices.energy)

    def window(self, request: web.BaseRequest, asked: Period) -> Window:
        return asked.window(self.host.clock.time(), self.whose(request, asked))

    def whose(self, request: web.BaseRequest, asked: WithUser) -> str | None:
        return figures.whose(self.host.requests.caller(request), asked.user)

    def span(self, asked: Period, window: Window) -> dict[str, JSON]:
        period = None if asked.since else asked.period or "month"
        last = day_of(window.until - DAY)
        return {"period": period, "from": day_of(window.since), "to": last, "user": window.caller}


def grouped(found: Sequence[Mapping[str, Any]], column: str) -> dict[Any, list[Mapping[str, Any]]]:
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for one in found:
        groups.setdefault(one[column], []).append(one)
    return groups


def currencies(found: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The rows of each currency.  Currencies without any amount (of failed calls) are omitted if there are others."""
    groups = sorted(grouped([one for one in found if one["currency"]], "currency").items())
    return [(name, some) for name, some in groups if any(total(some, one) for one in MONEY)] or groups


def total(found: Iterable[Mapping[str, Any]], column: str) -> int:
    return sum(one[column] for one in found)


def costs_as_json(found: Sequence[Mapping[str, Any]], energy: Energy) -> dict[str, JSON]:
    """The sums of some calls; with several currencies, amounts are given per currency only.

    energy: the current settings.  Zero energy is reported as null if the power of the upstreams is not configured.
    """
    by = [in_currency(currency, some, energy) for currency, some in currencies(found)]
    only = by[0] if len(by) == 1 else dict.fromkeys(in_currency("", (), energy))
    calls, drawn = total(found, "calls"), total(found, "energy_mj")
    return {
        **only,
        "total_requests": calls,
        "unpriced_requests": calls - total(found, "priced"),
        "cached_requests": total(found, "hits") + total(found, "shared"),
        "prompt_tokens": total(found, "prompt_tokens"),
        "completion_tokens": total(found, "completion_tokens"),
        "energy_kwh": kilowatt_hours(drawn) if drawn or known(found, energy) else None,
        "by_currency": by,
    }


def in_currency(currency: str, found: Sequence[Mapping[str, Any]], energy: Energy) -> dict[str, JSON]:
    """total_cost is null if no call had a price.  saved: what cached answers would have cost.  cloud_cost: the price of
    the same calls at the cloud model that they are compared with."""
    priced = total(found, "priced") > 0
    cost, prompt, power = (total(found, column) for column in ("cost", "prompt_cost", "power"))
    has_power = power or (energy.per_kwh is not None and energy.currency == currency and known(found, energy))
    return {
        "currency": currency or None,
        "total_cost": money(cost) if priced else None,
        "prompt_cost": money(prompt) if priced else None,
        "response_cost": money(cost - prompt) if priced else None,
        "saved": money(total(found, "saved")),
        "cloud_cost": money(total(found, "cloud")) if total(found, "compared") else None,
        "energy_cost": money(power) if has_power else None,
    }


def projected(currency: str, found: Sequence[Mapping[str, Any]], passed: int, whole: int) -> dict[str, JSON]:
    """Of the seconds that have passed, and extrapolated to the whole month.  Null if no call had a price."""
    cost = total(found, "cost")
    amounts = cost, rounded(cost * DAY, passed), rounded(cost * whole, passed)
    priced = total(found, "priced") > 0
    total_cost, mean, month = (money(one) if priced else None for one in amounts)
    return {"currency": currency or None, "total_cost": total_cost, "daily_mean": mean, "projected_cost": month}


def known(found: Iterable[Mapping[str, Any]], energy: Energy) -> bool:
    """Whether zero energy is certain: the power of every upstream is configured, or no call reached one."""
    return bool(energy.watts) and all(
        not one["upstream"] or one["hits"] + one["shared"] == one["calls"] or energy.of(one["upstream"])
        for one in found
    )


def kilowatt_hours(thousandths: int) -> JSON:
    """From thousandths of a joule; exact to a billionth."""
    return money(rounded(thousandths * 10**9, 3_600_000_000))


def spelled(by: str, value: Any) -> JSON:
    return day_of(value / MICRO) if by == "day" else value or None
