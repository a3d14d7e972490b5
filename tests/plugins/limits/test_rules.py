"""Rules of limits: settings, and errors in them."""

from __future__ import annotations

import pytest

from plugins.limits.calendar import Calendar, begin_of
from plugins.limits.plan import Rules, safe
from plugins.limits.rules import Rule
from proxy import config as configuration
from proxy import registry
from proxy.clock import Clock
from proxy.errors import ConfigError
from proxy.wire.ollama_models import canonical
from tests.conftest import Start
from tests.plugins.limits.asking import limits


def check(text: str) -> list[str]:
    with pytest.raises(ConfigError) as failed:
        configuration.read("proxy.yaml", text, registry.problems_of, {})
    return failed.value.problems


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("{}", "a rule needs at least one limit: money_per_month, "),
        ("{at_once: 0}", "at_once: Input should be greater than 0"),
        ("{per: nobody, at_once: 1}", "per: Input should be 'caller', 'key', 'model', 'route' or 'all'"),
        ("{per: [], at_once: 1}", "per: "),
        ("{per: [all, caller], at_once: 1}", "cannot be combined"),
        ("{per: [caller, caller], at_once: 1}", "contains a duplicate"),
        ("{match: {user: x}, at_once: 1}", "match.user: "),
        ("{match: {caller: ''}, at_once: 1}", "match.caller: "),
        ("{unless: {caller: '*'}, at_once: 1}", "`unless` matches every call"),
        ("{money_per_day: -1}", "money_per_day: Input should be greater than 0"),
        ("{money_per_day: a}", "money_per_day: "),
        ("{money_per_day: .inf}", "money_per_day: "),
        ("{money_per_day: 0.00000000001}", "money_per_day: "),
        ("{money_per_day: 1e12}", "money_per_day: "),
        ("{requests_per_second: 1}", "requests_per_second: "),
    ],
)
def test_an_invalid_rule_is_an_error_with_its_line(rule: str, why: str) -> None:
    text = f"plugins:\n  limits:\n    limits:\n    - {{at_once: 9}}\n    - {rule}\nchains: {{chat: [limits]}}\n"
    (problem,) = check(text)
    assert problem.startswith("proxy.yaml:5: plugins.limits.limits.1") and why in problem


@pytest.mark.parametrize(
    ("chain", "why"),
    [
        ("cache, limits", "'limits' counts calls and must come before 'cache', which keeps answers"),
        ("retry, limits", "'limits' counts calls and must come before 'retry', which tries again"),
        ("limits, usage", "'usage' records calls and must come before 'limits', whose refusals it would not see"),
    ],
)
def test_the_plugins_place_in_a_chain_is_checked(chain: str, why: str) -> None:
    text = f"plugins: {{limits: {{}}, cache: {{}}, retry: {{}}, usage: {{}}}}\nchains:\n  chat: [{chain}]\n"
    assert check(text) == [f"proxy.yaml:3: chains.chat.1: {why}"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "listen: {port: 0, workers: 2}\nplugins:\n  limits: {limits: [{at_once: 1}]}\n",
            ":3: plugins.limits: 2 workers",
        ),
        ("plugins:\n  limits: {store: memory}\n", ":2: plugins.limits: the store 'memory' cannot keep counts"),
        ("plugins:\n  limits: {store: x}\n", ":2: plugins.limits: no store is called 'x'"),
        (
            "plugins:\n  limits: {limits: [{at_once: 1}, {at_once: 3, requests_per_minute: 4}]}\n",
            ":2: plugins.limits: limits.1: counts the same calls as limits.0",
        ),
    ],
)
async def test_rules_that_cannot_be_counted_are_errors_with_their_line(start: Start, text: str, why: str) -> None:
    with pytest.raises(ConfigError) as failed:
        async with start(text + "chains: {chat: [limits]}\n"):
            pass
    (problem,) = failed.value.problems
    assert problem.startswith(f"proxy.yaml{why}")


async def test_workers_can_share_a_redis_that_is_not_running_yet(start: Start) -> None:
    text = limits("{at_once: 1}", store="redis://127.0.0.1:9/0")
    async with start(text + "listen: {port: 0, workers: 2}\n") as run:
        assert run.url


def test_money_is_exact() -> None:
    rule = Rule.model_validate({"money_per_day": 0.1, "money_per_month": "2.50"})
    assert {one.name: most for one, most in rule.limits()} == {
        "money_per_day": 100_000_000,
        "money_per_month": 2_500_000_000,
    }


RULE = Rule(per=("caller", "model"), at_once=1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "b&c"), ("a&b", "c")),
        (("a|b", "c"), ("a", "b|c")),
        (("a%26", "c"), ("a&", "c")),
        (("a" * 300, "c"), ("a" * 301, "c")),
    ],
)
def test_subjects_with_different_names_are_never_equal(one: tuple[str, str], other: tuple[str, str]) -> None:
    rules = Rules([RULE], canonical)
    first, second = (rules.plan(caller, "", model, "chat").subjects for caller, model in (one, other))
    assert first != second


def test_a_call_without_a_key_is_a_different_subject_from_one_with_a_key() -> None:
    rules = Rules([Rule(per=("key",), at_once=1)], canonical)
    plans = [rules.plan("ann", key, "m", "chat").subjects for key in ("", "ann", "k1", "k2")]
    assert len(set(plans)) == 4
    assert rules.plan("bob", "", "m", "chat").subjects != plans[0]


@pytest.mark.parametrize("name", ["é" * 600, "\x00", "a b", "%" * 600, "\ud800", "🦙" * 200])
def test_any_name_can_be_part_of_a_counters_key(name: str) -> None:
    told = safe(name)
    assert told.isascii() and told.isprintable() and len(told) <= 160 and not set(told) & set("|&")


def test_a_subject_can_be_read_back() -> None:
    rules = Rules([RULE], canonical)
    (subject,) = rules.plan("ann lee", "", "Gemma3:4b", "chat").subjects
    assert rules.read(subject) == (RULE, {"caller": "ann lee", "model": "gemma3:4b"})
    assert rules.read("gone|x") is None and rules.read(subject + "&more") is None


class Fixed(Clock):
    def __init__(self, now: float) -> None:
        self.now = now

    def time(self) -> float:
        return self.now


def test_days_and_months_are_those_of_utc() -> None:
    clock = Fixed(begin_of("2024-02-29") + 86_399.5)
    calendar = Calendar(clock)
    assert (calendar.span("day").name, calendar.span("month").name) == ("2024-02-29", "2024-02")
    assert calendar.span("day").ends == calendar.span("month").ends == begin_of("2024-03-01")
    clock.now += 1
    assert (calendar.span("day").name, calendar.span("month").name) == ("2024-03-01", "2024-03")
    clock.now = begin_of("2024-12-31") + 5
    assert calendar.span("month").ends == begin_of("2025-01") == begin_of("2025-01-01")
