"""Which rules apply to a call, computed once for all calls with the same attributes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final
from urllib.parse import quote, unquote

from msgspec import Struct

from plugins.limits.calendar import Calendar
from plugins.limits.rules import MINUTE, QUANTITIES, Quantity, Rule, Which
from proxy.errors import ConfigError
from proxy.stores.counters import Claim

LONGEST: Final = 160
"""Maximum characters of a name in a key; the end of a longer one is replaced by a hash, so a database can index it."""
KEPT: Final = 3600.0
"""Seconds for which a count of concurrent calls is kept after the last of them began."""
AFTERWARDS: Final = 86_400.0
"""Seconds for which a budget's count is kept after its period: calls that began in the period may still end."""


class Need(Struct, frozen=True):
    """An estimate of what a call will use.  prompt: tokens; tokens: with the answer's; money: billionths."""

    prompt: int = 0
    tokens: int = 0
    money: int = 0


NOTHING: Final = Need()


@dataclass(frozen=True, slots=True)
class Counted:
    """One limit of one rule, for one subject.  most: money in billionths.  whom: the subject, for messages."""

    quantity: Quantity
    most: int
    key: str
    whom: str
    always: Claim | None
    """The claim if it is the same for every call, else None."""

    def claim(self, need: Need, calendar: Calendar) -> Claim:
        if self.always is not None:
            return self.always
        quantity = self.quantity
        if quantity.unit == "money":
            amount = min(need.money, self.most)
        else:  # an answer may turn out shorter, a prompt may not
            amount = max(need.prompt, min(need.tokens, self.most))
        if quantity.window:
            return Claim(self.key, self.most, amount, quantity.window)
        span = calendar.span(quantity.period)
        life = span.ends - calendar.time() + AFTERWARDS
        return Claim(f"{self.key}|{span.name}", self.most, amount, 0.0, life, None)


class Plan:
    """All limits that apply to a call.

    subjects: whose counts these are.  units: what is counted, for each limit.
    rates: indexes of the limits per minute, each with the names of its headers.
    """

    __slots__ = ("budgets", "counted", "guesses", "rates", "settles", "subjects", "units")

    def __init__(self, counted: Sequence[Counted], subjects: Sequence[str]) -> None:
        self.counted = tuple(counted)
        self.subjects = tuple(subjects)
        self.units = tuple(one.quantity.unit for one in counted)
        self.settles = set(self.units) != {"requests"}
        self.guesses = not {"tokens", "money"}.isdisjoint(self.units)
        self.budgets = any(one.quantity.period for one in counted)
        self.rates = tuple(
            (index, tuple(f"ratelimit-{told}-{one.quantity.unit}" for told in ("limit", "remaining", "reset")))
            for index, one in enumerate(counted)
            if one.quantity.window
        )

    def claims(self, need: Need, calendar: Calendar) -> list[Claim]:
        return [one.always or one.claim(need, calendar) for one in self.counted]


class Rules:
    """named: returns the model that an alias stands for."""

    def __init__(self, rules: Sequence[Rule], named: Callable[[str], str]) -> None:
        """Raises ConfigError if two rules count the same."""
        self.named = named
        self.rules = {name_of(rule): rule for rule in rules}
        self.models = {pattern: self.pattern(pattern) for rule in rules for pattern in patterns_of(rule, "model")}
        if len(self.rules) < len(rules):
            ids = [rule.id for rule in rules]
            doubled = next(index for index, one in enumerate(ids) if one in ids[:index])
            told = f"limits.{doubled}: counts the same calls as limits.{ids.index(ids[doubled])}; make it one rule"
            raise ConfigError([told])

    def pattern(self, pattern: str) -> str:
        """A pattern without wildcards is a name: it may be an alias, or differ in case."""
        return pattern.lower() if any(one in pattern for one in "*?[") else self.named(pattern)

    @property
    def budgets(self) -> bool:
        return any(quantity.period for rule in self.rules.values() for quantity, _ in rule.limits())

    def plan(self, caller: str, key: str, model: str, route: str) -> Plan:
        about = {"caller": caller, "key": key, "model": self.named(model), "route": route}
        counted: list[Counted] = []
        subjects: list[str] = []
        for rule in self.rules.values():
            if self.applies(rule, about):
                subject = subject_of(rule, about)
                subjects.append(subject)
                counted += counted_of(rule, subject)
        return Plan(sorted(counted, key=lambda one: ORDER[one.quantity.name]), subjects)

    def applies(self, rule: Rule, about: Mapping[str, str]) -> bool:
        return self.fits(rule.match, about, True) and not self.fits(rule.unless, about, False)

    def fits(self, which: Which, about: Mapping[str, str], empty: bool) -> bool:
        """empty: the result if no patterns are set, and for a dimension that is not in `about`."""
        said = [(name, patterns) for name, patterns in which if patterns]
        fitting = (self.one_fits(name, patterns, about[name]) if name in about else empty for name, patterns in said)
        return all(fitting) if said else empty

    def one_fits(self, name: str, patterns: Iterable[str], value: str) -> bool:
        if name == "model":
            patterns = [self.models[one] for one in patterns]
        return any(fnmatchcase(value, one) for one in patterns)

    def read(self, subject: str) -> tuple[Rule, dict[str, str]] | None:
        """The rule of a subject and the subject's dimensions; None if the rule no longer exists."""
        name, _, values = subject.rpartition("|")
        if (rule := self.rules.get(name)) is None:
            return None
        told = [unquote(one) for one in values.split("&")] if rule.dimensions else []
        return (rule, dict(zip(rule.dimensions, told, strict=True))) if len(told) == len(rule.dimensions) else None


ORDER: Final = {quantity.name: index for index, quantity in enumerate(QUANTITIES)}


def patterns_of(rule: Rule, dimension: str) -> tuple[str, ...]:
    return (*getattr(rule.match, dimension), *getattr(rule.unless, dimension))


def subject_of(rule: Rule, about: Mapping[str, str]) -> str:
    """A unique key for what is counted; contains only characters that stores and databases accept."""
    values = [safe(value_of(dimension, about)) for dimension in rule.dimensions]
    return f"{name_of(rule)}|{'&'.join(values)}"


def name_of(rule: Rule) -> str:
    """The same for rules that count the same, whatever their limits: counts survive a change of a limit."""
    return safe(rule.id)


def value_of(dimension: str, about: Mapping[str, str]) -> str:
    """A call without a key counts as its caller's, in a form that no key's id can have."""
    return about[dimension] or f"caller {about['caller']}"


def safe(name: str) -> str:
    quoted = quote(name, safe=" :/@=*+,", errors="replace")
    if len(quoted) > LONGEST:
        head = re.sub(r"%.?$", "", quoted[: LONGEST - 20])  # do not cut an escape in half
        quoted = f"{head}~{hashlib.sha256(quoted.encode()).hexdigest()[:16]}"
    return quoted


def counted_of(rule: Rule, subject: str) -> Iterable[Counted]:
    whom = in_words(rule, subject)
    for quantity, most in rule.limits():
        key, always = f"{subject}|{quantity.name}", None
        if quantity.unit == "requests":
            always = Claim(key, most, 1, MINUTE)
        elif quantity.unit == "calls":
            always = Claim(key, most, 1, 0.0, KEPT)
        yield Counted(quantity, most, key, whom, always)


def in_words(rule: Rule, subject: str) -> str:
    """Such as `for caller 'alice' and model 'gemma3:4b'`."""
    values = [unquote(one) for one in subject.rpartition("|")[2].split("&")]
    said = [f"{name} {value!r}" for name, value in zip(rule.dimensions, values, strict=False)]
    return f"for {' and '.join(said)}" if said else "for all calls together"
