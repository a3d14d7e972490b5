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
    """A million tokens of prompts."""
    output: Money = Decimal(0)
    """A million tokens of answers, thinking included."""
    cached: Money | None = None
    """A million prompt tokens that the upstream had in its cache; unset is the same as `input`."""
    currency: Currency | None = None
    """Unset is the list's."""
    like: str = ""
    """In `cloud`: name of the service that it is the price of."""


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
    """Prices by model: a pattern such as `gemma*`, of which the longest that fits counts."""

    models: dict[Pattern, Rates] = {}
    """What a call costs, by pattern of the model's name; a price, or a list with `valid_from`."""
    cloud: dict[Pattern, Rates] = {}
    """What the same would cost at a cloud service, told beside it."""


class Watts(Strict):
    """What one upstream's host draws."""

    busy: Money
    """Watts while a model reads and writes."""
    idle: Money = Decimal(0)
    """Watts while one is loaded."""


class Power(Strict):
    """What calls draw, by the times that Ollama tells."""

    per_kwh: Money | None = None
    """Price of a kilowatt-hour."""
    watts: dict[str, Watts] = {}
    """By upstream's name."""


class Costs(Strict):
    """What calls cost; models without a price cost null."""

    currency: Currency = "USD"
    """Of every price that does not name its own, and of energy.  Currencies are never added up or converted."""
    prices: str | Prices = Prices()
    """A file of prices, by its path from this one, or the prices."""
    energy: Power = Power()
    """What calls draw."""
