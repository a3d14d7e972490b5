"""The costs of calls, to the billionth."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from proxy.announcements import CallEnded, Cost, Rejected
from proxy.config import Config, packaged
from proxy.costing import book_of
from proxy.errors import ConfigError
from proxy.prices import Energy, PriceBook, Tariff, fits, rounded
from proxy.yamlfile import Source

CALL = CallEnded("r", 1000.0, "ann", "", "chat", False, "gemma:2b", "gemma:2b", "home/10.0.0.5", 1000, 10)
BILLION = 10**9


def tariff(pattern: str, price: int, since: float = 0, **more: object) -> Tariff:
    told: dict[str, object] = {"currency": "USD", **more}
    return Tariff(pattern, since, input=price * BILLION, output=price * BILLION, **told)  # type: ignore[arg-type]


def cost(book: PriceBook, call: CallEnded = CALL) -> Cost:
    found = book.cost(call)
    assert found is not None
    return found


def test_without_prices_nothing_is_known() -> None:
    assert PriceBook().cost(CALL) is None


def test_the_longest_matching_pattern_applies() -> None:
    book = PriceBook([tariff("*", 9), tariff("gemma*", 2), tariff("gemma:7b", 5)])
    assert cost(book).amount == 1010 * 2000 and cost(book).prompt == 1000 * 2000


@pytest.mark.parametrize(
    ("model", "pattern", "does"),
    [("Gemma:2b", "gemma*", True), ("demo:latest", "demo", True), ("demo", "demo:latest", False), ("a", "b", False)],
)
def test_patterns_of_models(model: str, pattern: str, does: bool) -> None:
    assert fits(model, pattern) == does


def test_a_price_applies_from_its_date_on() -> None:
    book = PriceBook([tariff("gemma*", 1), tariff("gemma*", 3, since=1500), tariff("*", 7)])
    assert cost(book).amount == 1010 * 1000
    assert cost(book, replace(CALL, at=1500.0)).amount == 1010 * 3000


def test_an_ended_price_gives_null_instead_of_a_shorter_patterns_price() -> None:
    book = PriceBook([tariff("gemma*", 1), tariff("*", 7)])
    book.put([tariff("gemma*", 0, since=900, ended=True)], [])
    assert cost(book).amount is None and cost(book, replace(CALL, at=800.0)).amount == 1010 * 1000


def test_a_cached_answer_costs_nothing_and_saves_its_price() -> None:
    book = PriceBook([tariff("*", 2)], [tariff("*", 10)], Energy("USD", BILLION, {"home": (0, 1000)}))
    kept = cost(book, replace(CALL, cache="hit", eval_ns=10**9))
    assert (kept.amount, kept.prompt, kept.saved, kept.energy_mj, kept.power) == (0, 0, 1010 * 2000, 0, 0)
    assert kept.cloud == 1010 * 10_000


def test_cached_prompt_tokens_have_a_separate_price() -> None:
    book = PriceBook([tariff("*", 2, cached=BILLION)])
    assert cost(book, replace(CALL, cached_tokens=400)).amount == (600 * 2 + 400 * 1 + 10 * 2) * 1000
    assert cost(book, replace(CALL, cached_tokens=9000)).prompt == 1000 * 1000, "never more than the prompt has"


def test_a_call_without_tokens_costs_zero_and_one_without_a_price_null() -> None:
    book = PriceBook([tariff("other", 2)])
    assert cost(book).amount is None
    assert cost(book, replace(CALL, model="", prompt_tokens=None, completion_tokens=None)).amount == 0


def test_energy_is_computed_from_the_upstreams_times() -> None:
    energy = Energy("USD", 300_000_000, {"home": (30_000, 250_000)})
    found = cost(PriceBook(energy=energy), replace(CALL, load_ns=2 * 10**9, prompt_ns=10**9, eval_ns=3 * 10**9))
    assert found.energy_mj == (30 * 2 + 250 * 4) * 1000
    assert found.power == rounded(1_060_000 * 300_000_000, 3_600_000_000) and found.amount is None
    assert cost(PriceBook(energy=energy), replace(CALL, upstream="elsewhere")).energy_mj is None


def test_amounts_in_another_currency_than_the_price_are_omitted() -> None:
    euro = tariff("*", 1, currency="EUR")
    found = cost(PriceBook([euro], [tariff("*", 2)], Energy("USD", BILLION, {"home": (0, 1000)})))
    assert (found.currency, found.amount is None, found.cloud, found.power) == ("EUR", False, None, None)


@given(st.integers(0, 10**12), st.integers(1, 10**6))
def test_rounding_is_half_to_even(numerator: int, denominator: int) -> None:
    exact = Decimal(numerator) / Decimal(denominator)
    assert abs(rounded(numerator, denominator) - exact) <= Decimal("0.5")
    halves = Decimal(numerator) / 2
    assert rounded(numerator, 2) == int(halves.quantize(Decimal(1), ROUND_HALF_EVEN))


def book(text: str, upstreams: tuple[str, ...] = ("local",), name: str = "proxy.yaml") -> PriceBook:
    source = Source(name, text + "\nchains: {}\n", {})
    config = source.check(Config, source.data)
    return book_of(config.costs, dict.fromkeys(upstreams), source)


def test_prices_are_exact_decimals() -> None:
    made = book("costs: {prices: {models: {'*': {input: 0.1, output: 0.000000001, valid_from: 1970-01-01}}}}")
    (found,) = made.models.tariffs
    assert (found.input, found.output, found.currency) == (100_000_000, 1, "USD")


def test_prices_can_be_in_a_separate_file(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("models:\n  a: [{input: 1}, {input: 2, valid_from: 2026-02-01}]\n")
    made = book("costs: {prices: prices.yaml, currency: EUR}", name=str(tmp_path / "proxy.yaml"))
    assert [(one.input, one.currency) for one in made.models.tariffs] == [(2 * BILLION, "EUR"), (BILLION, "EUR")]


def test_the_packaged_prices_are_for_comparison_only() -> None:
    made = book("costs: {prices: prices.yaml}", name=str(packaged("proxy.yaml")))
    assert made.models.tariffs == []
    now = 1_800_000_000.0
    compared = {model: made.cloud.of(model, now) for model in ("gemma3:4b", "llama3.3:70b", "nomic-embed-text:latest")}
    assert [one and one.like for one in compared.values()] == ["gpt-4o-mini", "gpt-4o", "text-embedding-3-small"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("costs: {prices: none.yaml}", "costs.prices: .*none.yaml cannot be read"),
        ("costs: {energy: {watts: {loca: {busy: 1}}}}", "no upstream is called 'loca'"),
        ("costs: {prices: {models: {a: {input: -1}}}}", "greater than or equal to 0"),
        ("costs: {prices: {models: {a: {input: 0.0000000001}}}}", "decimal places"),
        ("costs: {prices: {models: {a: {inptu: 1}}}}", "no such setting"),
        ("costs: {currency: euro}", "pattern"),
    ],
)
def test_invalid_prices_are_errors(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        book(text)


def test_an_error_in_the_price_file_has_its_line(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("models:\n  a:\n    input: x\n")
    with pytest.raises(ConfigError, match=r"prices.yaml:3: models.a"):
        book("costs: {prices: prices.yaml}", name=str(tmp_path / "proxy.yaml"))


LOST = Rejected("big", "cloud", 300, 4, 0, 0, 10**9, 10**9, 10**9)
BOTH = replace(CALL, prompt_tokens=1300, completion_tokens=14, load_ns=10**9, prompt_ns=2 * 10**9, eval_ns=2 * 10**9)


def test_a_rejected_answer_costs_the_price_of_its_own_model_and_upstream() -> None:
    power = Energy("USD", BILLION, {"home": (1000, 2000), "cloud": (10_000, 20_000)})
    book = PriceBook([tariff("gemma*", 1), tariff("big", 10)], [tariff("*", 5)], power)
    told = cost(book, replace(BOTH, rejected=(LOST,)))
    assert (told.amount, told.prompt) == (1010 * 1000 + 304 * 10_000, 1000 * 1000 + 300 * 10_000)
    assert told.cloud == 1314 * 5000
    assert told.energy_mj == 2 * 2000 + 10_000 + 2 * 20_000
    assert told.power == rounded(told.energy_mj * BILLION, 3_600_000_000)


def test_the_known_costs_of_several_answers_are_added_up_in_one_currency() -> None:
    both = replace(BOTH, rejected=(LOST,))
    assert cost(PriceBook([tariff("big", 10)]), both).amount == 304 * 10_000, "a budget covers what has a price"
    assert cost(PriceBook([tariff("gemma*", 1)]), both).amount == 1010 * 1000
    two = PriceBook([tariff("gemma*", 1, currency="EUR"), tariff("big", 10)])
    assert (cost(two, both).currency, cost(two, both).amount) == ("EUR", 1010 * 1000)
    assert cost(PriceBook([tariff("other", 1)]), both).amount is None
    took = {"prompt_tokens": 300, "completion_tokens": 4, "load_ns": 10**9, "prompt_ns": 10**9, "eval_ns": 10**9}
    failed = cost(two, replace(both, **took))
    assert (failed.currency, failed.amount) == ("USD", 304 * 10_000), "a failed answer does not decide the currency"
