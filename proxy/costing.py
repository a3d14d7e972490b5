"""The prices in a configuration, as a price book."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, time
from decimal import Decimal
from pathlib import Path

from proxy.errors import ConfigError
from proxy.prices import Energy, PriceBook, Tariff
from proxy.settings.costs import Costs, Dated, Power, Prices, Rates
from proxy.yamlfile import Source

Place = tuple[str | int, ...]


def book_of(costs: Costs, upstreams: Mapping[str, object], source: Source) -> PriceBook:
    """The price book.  Raises ConfigError, also for problems in a separate file of prices."""
    prices = costs.prices if isinstance(costs.prices, Prices) else read(costs.prices, source)
    if strangers := set(costs.energy.watts) - set(upstreams):
        place = ("costs", "energy", "watts")
        raise ConfigError([source.problem((*place, one), f"no upstream is called {one!r}") for one in strangers])
    return PriceBook(
        tariffs(prices.models, costs.currency),
        tariffs(prices.cloud, costs.currency),
        energy(costs.energy, costs.currency),
    )


def read(name: str, source: Source) -> Prices:
    path = Path(source.name).parent / name
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError([source.problem(("costs", "prices"), f"{path} cannot be read: {why}")]) from error
    listed = Source(str(path), text, os.environ)
    if listed.problems:
        raise ConfigError(listed.problems)
    return listed.check(Prices, listed.data or {})


def tariffs(listed: Mapping[str, Rates], currency: str) -> Iterator[Tariff]:
    for pattern, rates in listed.items():
        for rate in rates:
            yield tariff(pattern, rate, currency)


def tariff(pattern: str, rate: Dated, currency: str) -> Tariff:
    since = datetime.combine(rate.valid_from, time(), UTC).timestamp()
    cached = None if rate.cached is None else billionths(rate.cached)
    money = billionths(rate.input), billionths(rate.output), cached
    return Tariff(pattern, since, rate.currency or currency, *money, like=rate.like)


def energy(power: Power, currency: str) -> Energy:
    per_kwh = None if power.per_kwh is None else billionths(power.per_kwh)
    watts = {name: (int(one.idle * 1000), int(one.busy * 1000)) for name, one in power.watts.items()}
    return Energy(currency, per_kwh, watts)


def billionths(money: Decimal) -> int:
    return int(money.scaleb(9))
