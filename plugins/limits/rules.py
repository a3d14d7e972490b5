"""The settings: rules, and the quantities that they limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BeforeValidator, Field, PositiveInt, WithJsonSchema, model_validator

from proxy.config import Strict

BILLION: Final = 1_000_000_000
MOST: Final = 9_000_000_000_000_000
"""Just below 2^53; larger integers are not exact as floats, with which Redis's scripts (Lua) calculate."""
MINUTE: Final = 60.0
Unit: TypeAlias = Literal["requests", "tokens", "calls", "money"]
Period: TypeAlias = Literal["", "day", "month"]
Dimension: TypeAlias = Literal["caller", "key", "model", "route"]
Per: TypeAlias = Literal["caller", "key", "model", "route", "all"]


def _list(given: object) -> object:
    return (given,) if isinstance(given, str) else given


Word = Annotated[str, Field(min_length=1)]
Patterns = Annotated[
    tuple[Word, ...],
    BeforeValidator(_list),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
Count = Annotated[PositiveInt, Field(le=MOST)]
Money = Annotated[Decimal, Field(gt=0, le=MOST // BILLION, decimal_places=9)]


class Which(Strict):
    """Calls that match all of these; each is a name or a pattern such as `gemma*`, or a list of which one must
    match."""

    caller: Patterns = ()
    """Names of callers."""
    key: Patterns = ()
    """Ids of API keys; a call without a key matches only `*`."""
    model: Patterns = ()
    """Models, by name, with aliases resolved."""
    route: Patterns = ()
    """Chains: `chat`, `completions`, `embeddings`."""


class Rule(Strict):
    """Limits for some calls.  Every rule that matches a call must allow it."""

    per: Annotated[
        tuple[Per, ...],
        BeforeValidator(_list),
        Field(min_length=1),
        WithJsonSchema(
            {
                "anyOf": [
                    {"enum": ["caller", "key", "model", "route", "all"]},
                    {"type": "array", "items": {"enum": ["caller", "key", "model", "route", "all"]}, "minItems": 1},
                ]
            }
        ),
    ] = ("caller",)
    """What is counted separately: `caller`, `key`, `model`, `route` or a list of these, such as `[caller, model]`;
    `all` is one count for everything.  A call without a key counts as its caller's."""
    match: Which = Which()
    """Which calls are counted; all if unset."""
    unless: Which = Which()
    """Which of them are not counted."""
    requests_per_minute: Count | None = None
    """Requests within any 60 seconds.  Cached answers count, calls that are refused here do not."""
    tokens_per_minute: Count | None = None
    """Tokens of prompts and answers within any 60 seconds.  Cached answers count as none."""
    at_once: Count | None = None
    """Calls under way at the same time."""
    tokens_per_day: Count | None = None
    """Tokens in a day of UTC."""
    tokens_per_month: Count | None = None
    """Tokens in a month of UTC."""
    money_per_day: Money | None = None
    """Money in a day of UTC, in the currency of the prices: a number, or a text such as `"2.50"`.  Calls without a
    price count as nothing."""
    money_per_month: Money | None = None
    """The same in a month of UTC."""

    @model_validator(mode="after")
    def _one_thing(self) -> Rule:
        if len(set(self.per)) != len(self.per):
            raise ValueError("`per` contains a duplicate")
        if "all" in self.per and len(self.per) > 1:
            raise ValueError("`per: all` is one count for everything, and cannot be combined with others")
        if not any(True for _ in self.limits()):
            raise ValueError(f"a rule needs at least one limit: {', '.join(one.name for one in QUANTITIES)}")
        if self.unless != Which() and all(patterns in ((), ("*",)) for _, patterns in self.unless):
            raise ValueError("`unless` matches every call, so none would be counted")
        return self

    def limits(self) -> Iterator[tuple[Quantity, int]]:
        """The quantities that this rule limits, and the limits; money in billionths."""
        for quantity in QUANTITIES:
            if (most := getattr(self, quantity.name)) is not None:
                yield quantity, int(most * BILLION) if quantity.unit == "money" else most

    @property
    def dimensions(self) -> tuple[str, ...]:
        return () if self.per == ("all",) else self.per

    @property
    def id(self) -> str:
        """A readable name of what is counted."""
        said = [
            f"{name} {dimension}={','.join(sorted(patterns))}"
            for name, which in (("match", self.match), ("unless", self.unless))
            for dimension, patterns in which
            if patterns
        ]
        return " ".join(["+".join(sorted(self.per)), *said])


@dataclass(frozen=True, slots=True)
class Quantity:
    """Something that can be limited.

    words: text after the limit's number in messages.
    window: seconds of a sliding window, 0 for budgets and concurrent calls.
    period: of a budget.
    """

    name: str
    unit: Unit
    words: str
    code: str
    window: float = 0.0
    period: Period = ""


QUANTITIES: Final = (  # a refusal names the first that is exceeded: those for which waiting helps least come first
    Quantity("money_per_month", "money", "per month", "insufficient_quota", period="month"),
    Quantity("tokens_per_month", "tokens", "tokens per month", "insufficient_quota", period="month"),
    Quantity("money_per_day", "money", "per day", "insufficient_quota", period="day"),
    Quantity("tokens_per_day", "tokens", "tokens per day", "insufficient_quota", period="day"),
    Quantity("requests_per_minute", "requests", "requests per minute", "rate_limit_exceeded", MINUTE),
    Quantity("tokens_per_minute", "tokens", "tokens per minute", "rate_limit_exceeded", MINUTE),
    Quantity("at_once", "calls", "calls at once", "too_many_at_once"),
)
