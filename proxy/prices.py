"""What calls cost: prices by model and date, exact to the billionth of a currency's unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Final

import orjson
from msgspec.structs import replace

from proxy.announcements import KEPT, CallEnded, Cost, Rejected

MILLION: Final = 10**6
KWH: Final = 3_600_000_000
"""Thousandths of a joule in a kilowatt-hour."""
COUNTED: Final = ("prompt_tokens", "completion_tokens", "cached_tokens", "load_ns", "prompt_ns", "eval_ns")
"""Fields of CallEnded from which the cost of an answer is computed."""
MOST: Final = 1000
"""Models whose tariffs are cached."""


@dataclass(frozen=True, slots=True)
class Tariff:
    """A price that is valid from a day on.  Money in billionths of the currency's unit, per million tokens.

    pattern: for names of models, with `*` and `?`.
    since: Unix seconds.
    cached: for prompt tokens that the upstream had in its cache; None means the same as `input`.
    ended: whether the pattern has no price from then on.
    like: name of the service whose price it is.
    """

    pattern: str
    since: float
    currency: str
    input: int = 0
    output: int = 0
    cached: int | None = None
    ended: bool = False
    like: str = ""

    def of(self, prompt: int, cached: int, completion: int) -> tuple[int, int]:
        """The price of these tokens, and the prompt's part of it, in billionths.  cached: is included in `prompt`."""
        known = self.input if self.cached is None else self.cached
        asked = (prompt - cached) * self.input + cached * known
        return rounded(asked + completion * self.output, MILLION), rounded(asked, MILLION)


@dataclass(frozen=True, slots=True)
class Energy:
    """The electrical power of upstreams, and its price.

    watts: by the upstream's name, thousandths of a watt while idle and while busy.
    per_kwh: billionths of the currency's unit; None if unknown.
    """

    currency: str = "USD"
    per_kwh: int | None = None
    watts: Mapping[str, tuple[int, int]] | None = None

    def of(self, upstream: str) -> tuple[int, int] | None:
        known = self.watts or {}
        return known.get(upstream) or known.get(upstream.partition("/")[0])

    def drawn(self, ended: CallEnded) -> int | None:
        """Thousandths of a joule: idle power while the model loads, busy power while it reads and generates.

        None if the upstream's power is not configured.
        """
        if ended.cache in KEPT:
            return 0
        watts = self.of(ended.upstream)
        if watts is None:
            return None
        return rounded(watts[0] * ended.load_ns + watts[1] * (ended.prompt_ns + ended.eval_ns), 10**9)


class Prices:
    """The tariffs of one kind: for own models, or of cloud services to compare with."""

    def __init__(self, tariffs: Iterable[Tariff]) -> None:
        self.tariffs = sorted(tariffs, key=lambda one: (len(one.pattern), one.since), reverse=True)
        self.found: dict[str, list[Tariff]] = {}

    def of(self, model: str, at: float) -> Tariff | None:
        """The tariff of the longest matching pattern that is valid at that time; None if there is none."""
        if (fitting := self.found.get(model)) is None:
            if len(self.found) >= MOST:
                self.found.clear()
            fitting = self.found[model] = [one for one in self.tariffs if fits(model, one.pattern)]
        held = next((one for one in fitting if one.since <= at), None)
        return None if held is None or held.ended else held


class PriceBook:
    """All prices: those of the configuration, and those set at run time, which `put` replaces."""

    def __init__(
        self, models: Iterable[Tariff] = (), cloud: Iterable[Tariff] = (), energy: Energy | None = None
    ) -> None:
        self.written = (tuple(models), tuple(cloud))
        self.energy = energy or Energy()
        self.put((), ())

    def put(self, models: Iterable[Tariff], cloud: Iterable[Tariff]) -> None:
        self.models = Prices((*self.written[0], *models))
        self.cloud = Prices((*self.written[1], *cloud))
        self.empty = not (self.models.tariffs or self.cloud.tariffs or self.energy.watts)

    def cost(self, ended: CallEnded) -> Cost | None:
        """The cost of a call; None if there are no prices at all.

        Amounts in another currency than the model's price are left out.  Undelivered answers cost what the models that
        generated them cost.
        """
        if self.empty:
            return None
        return together([self.alone(one) for one in answers(ended)]) if ended.rejected else self.alone(ended)

    def alone(self, ended: CallEnded) -> Cost:
        """The cost of one answer."""
        kept = ended.cache in KEPT
        amount, prompt, saved, currency = self.asked(ended)
        energy = self.energy.drawn(ended)
        known = energy is not None and self.energy.per_kwh is not None and currency == self.energy.currency
        return Cost(
            currency,
            0 if kept else amount,
            0 if kept else prompt,
            (amount or 0) if kept else saved,
            self.compared(ended, currency),
            energy,
            rounded((energy or 0) * (self.energy.per_kwh or 0), KWH) if known else None,
        )

    def asked(self, ended: CallEnded) -> tuple[int | None, int | None, int, str]:
        """The price of the call, of its prompt, and of the cached embeddings that were saved; the currency."""
        tariff = self.models.of(ended.model, ended.at)
        if tariff is not None:
            prompt, cached, completion = tokens(ended)
            saved = min(ended.kept_tokens, prompt)
            amounts = tariff.of(prompt - saved, min(cached, prompt - saved), completion)
            return *amounts, tariff.of(saved, 0, 0)[0], tariff.currency
        nothing = ended.prompt_tokens is None and ended.completion_tokens is None
        return *((0, 0) if nothing else (None, None)), 0, self.energy.currency

    def compared(self, ended: CallEnded, currency: str) -> int | None:
        """What the call's tokens would cost at the cloud service, even if the answer came from the cache."""
        tariff = self.cloud.of(ended.model, ended.at)
        return None if tariff is None or tariff.currency != currency else tariff.of(*tokens(ended))[0]


def answers(ended: CallEnded) -> list[CallEnded]:
    """Each answer of a call as a call of its own: the delivered one, if there is one, and the undelivered ones."""
    took = {name: sum(getattr(one, name) for one in ended.rejected) for name in COUNTED}
    rest = {name: max(0, (getattr(ended, name) or 0) - took[name]) for name in COUNTED}
    given = [replace(ended, rejected=(), **rest)] if any(rest.values()) else []
    return [*given, *(alone(ended, one) for one in ended.rejected)]


def alone(ended: CallEnded, one: Rejected) -> CallEnded:
    took = {name: getattr(one, name) for name in COUNTED}
    return replace(ended, model=one.model, upstream=one.upstream, cache="", kept_tokens=0, rejected=(), **took)


def together(costs: Sequence[Cost]) -> Cost:
    """The sum of costs, in the currency of the first that has a price; amounts in other currencies are left out."""
    currency = next((one.currency for one in costs if one.amount is not None), costs[0].currency)
    same = [one for one in costs if one.currency == currency]
    return Cost(
        currency,
        known(one.amount for one in same),
        known(one.prompt for one in same),
        sum(one.saved for one in same),
        known(one.cloud for one in same),
        known(one.energy_mj for one in costs),
        known(one.power for one in same),
    )


def known(amounts: Iterable[int | None]) -> int | None:
    told = [one for one in amounts if one is not None]
    return sum(told) if told else None


def tokens(ended: CallEnded) -> tuple[int, int, int]:
    prompt = ended.prompt_tokens or 0
    return prompt, min(ended.cached_tokens or 0, prompt), ended.completion_tokens or 0


def fits(model: str, pattern: str) -> bool:
    """Whether a model's name matches a pattern, ignoring case; the pattern may leave out `:latest`."""
    model, pattern = model.lower(), pattern.lower()
    return fnmatchcase(model, pattern) or fnmatchcase(model.removesuffix(":latest"), pattern)


def rounded(numerator: int, denominator: int) -> int:
    """The quotient, rounded to the nearest whole number, half to even."""
    whole, rest = divmod(numerator, denominator)
    return whole + (2 * rest > denominator or (2 * rest == denominator and whole % 2 == 1))


def money(billionths: int | None) -> orjson.Fragment | None:
    """As a JSON number, such as 0.000105; exact for clients that read it as a decimal."""
    return None if billionths is None else orjson.Fragment(spelled(billionths))


def spelled(billionths: int) -> str:
    text = f"{Decimal(billionths).scaleb(-9):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
