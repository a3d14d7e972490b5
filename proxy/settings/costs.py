"""What calls cost."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema

from proxy.settings.base import Strict


def _exact(given: object) -> object:
    """A number as it was written: 0.1 is a tenth, not its nearest neighbour among floats."""
    return Decimal(str(given)) if isinstance(given, int | float) and not isinstance(given, bool) else given


Money = Annotated[
    Decimal,
    BeforeValidator(_exact),
    Field(ge=0, max_digits=18, decimal_places=9, allow_inf_nan=False, strict=False),
    WithJsonSchema({"type": "number", "minimum": 0}),
]
Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Rate(Strict):
    """A price from a day on, for a million tokens."""

    input: Money = Decimal(0)
    """Price of a million tokens of prompts."""
    output: Money = Decimal(0)
    """Price of a million tokens of answers, including thinking."""
    cached: Money | None = None
    """Price of a million prompt tokens that were in the upstream's cache; if unset, the same as `input`."""
    currency: Currency | None = None
    """Currency, if not that of the list."""
    like: str = ""
    """In `cloud`: name of the service with this price."""


class Dated(Rate):
    """A price from a day on, for a million tokens."""

    valid_from: date = date(1970, 1, 1)
    """The first day, in UTC, such as `2026-01-31`; calls before it keep the earlier price."""


def _list(given: Any) -> Any:
    return given if isinstance(given, list | tuple) else [given]


Rates = Annotated[
    tuple[Dated, ...],
    BeforeValidator(_list),
    Field(min_length=1),
]
"""One price, or a list of them."""


class Prices(Strict):
    """Prices by model name or pattern, such as `gemma*`; the longest matching pattern counts."""

    models: dict[Pattern, Rates] = {}
    """Your own prices, by pattern of the model's name: one price, or a list with `valid_from`."""
    cloud: dict[Pattern, Rates] = {}
    """Prices of a cloud service, for comparison."""


class Watts(Strict):
    """Power of an upstream's host."""

    busy: Money
    """Watts while a model reads a prompt or generates."""
    idle: Money = Decimal(0)
    """Watts while a model is being loaded."""


class Power(Strict):
    """Energy that calls use, computed from the times that Ollama reports."""

    per_kwh: Money | None = None
    """Price of a kilowatt-hour."""
    watts: dict[str, Watts] = {}
    """Power of each upstream's host, by upstream."""


class Costs(Strict):
    """What calls cost; models without a price cost null."""

    currency: Currency = "USD"
    """Currency of energy and of every price that does not name another.  Currencies are never added up or converted."""
    prices: str | Prices = Prices()
    """Path of a file of prices, relative to this one, or the prices themselves."""
    energy: Power = Power()
    """Energy that calls use."""
