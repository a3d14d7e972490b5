"""The ranking of models: hand-calculated cases, and properties that hold for any games."""

from __future__ import annotations

import time
from itertools import combinations
from math import exp, log10
from typing import Any, NamedTuple

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.comparison.counts import Counts, percentiles
from plugins.comparison.outcomes import Brief, Outcome
from plugins.comparison.ranking import PRIOR, SCALE, GameArrays, likeliest, strengths
from plugins.comparison.results import NONE_GOOD, TIE
from plugins.comparison.standings import GameCollector


class Game(NamedTuple):
    comparison: int
    one: int
    other: int
    score: float


def by_bisection(wins: float, losses: float) -> float:
    """Half of the most likely distance of two models with these wins and losses, by bisection."""
    low, high = -50.0, 50.0
    for _ in range(200):
        middle = (low + high) / 2
        won = 1 / (1 + exp(-2 * middle))
        slope = wins * (1 - won) - losses * won + PRIOR * (1 - 2 / (1 + exp(-middle)))
        low, high = (middle, high) if slope > 0 else (low, middle)
    return low


@pytest.mark.parametrize(
    ("wins", "ties", "losses"), [(1, 0, 0), (3, 0, 1), (0, 5, 0), (7, 2, 5), (5000, 0, 0), (0, 1, 9)]
)
def test_the_distance_of_two_models_is_the_one_computed_by_bisection(wins: int, ties: int, losses: int) -> None:
    scores = [1.0] * wins + [0.5] * ties + [0.0] * losses
    found = strengths([Game(index, 0, 1, score) for index, score in enumerate(scores)], 2)
    expected = SCALE * by_bisection(wins + ties / 2, losses + ties / 2)
    assert found.ratings == pytest.approx([1000 + expected, 1000 - expected], abs=0.01)
    assert (found.low <= found.ratings).all() and (found.ratings <= found.high).all()
    assert np.isfinite(found.high).all() and (found.high - found.low > 1).all()


def test_many_games_approach_the_distance_of_the_true_odds() -> None:
    games = [Game(index, 0, 1, float(index % 4 != 0)) for index in range(4000)]
    found = strengths(games, 2)
    assert found.ratings[0] - found.ratings[1] == pytest.approx(400 * log10(3), abs=1)
    # Ratings are half the difference; 1.96 times its standard error of 1 / sqrt(4000 * 3/4 * 1/4) is 12.4 points.
    assert 10 < found.high[0] - found.low[0] < 15


def test_models_that_never_met_are_compared_through_others() -> None:
    games = [Game(0, 0, 1, 1), Game(1, 1, 2, 1)] * 5
    ratings = strengths([one._replace(comparison=index) for index, one in enumerate(games)], 3).ratings
    assert ratings[0] > ratings[1] > ratings[2]
    assert ratings[0] - 1000 == pytest.approx(1000 - ratings[2])


def test_the_same_games_give_the_same_ratings() -> None:
    games = [Game(index, index % 3, (index + 1) % 3, 1) for index in range(20)]
    one, other = strengths(games, 3), strengths(list(games), 3)
    assert (one.low == other.low).all() and (one.high == other.high).all()


@st.composite
def rounds(draw: st.DrawFn, champion: bool) -> tuple[list[Game], int]:
    """Comparisons of some models, and their number; with a champion, model 0 is in all and never loses."""
    models = draw(st.integers(2, 5))
    games: list[Game] = []
    for number in range(draw(st.integers(1, 8))):
        chosen = draw(st.lists(st.integers(0, models - 1), min_size=2, max_size=models, unique=True))
        if champion:
            chosen = [0, *(one for one in chosen if one)]
        for one, other in combinations(chosen, 2):
            score = 1.0 if champion and one == 0 else draw(st.sampled_from((0.0, 0.5, 1.0)))
            games.append(Game(number, one, other, score))
    return games or [Game(0, 0, 1, 1.0)], models


@settings(max_examples=40, deadline=None)
@given(rounds(champion=True))
def test_a_model_that_always_wins_ranks_first(given: tuple[list[Game], int]) -> None:
    ratings = likeliest(GameArrays(*given))
    assert all(ratings[0] > other for other in ratings[1:])


@settings(max_examples=40, deadline=None)
@given(rounds(champion=False), st.randoms(use_true_random=False))
def test_names_order_and_sides_do_not_matter(given: tuple[list[Game], int], chance: object) -> None:
    games, models = given
    ratings = likeliest(GameArrays(games, models))
    names = list(range(models))
    chance.shuffle(names)  # type: ignore[attr-defined]
    turned = [Game(9 - one.comparison, names[one.other], names[one.one], 1 - one.score) for one in reversed(games)]
    assert likeliest(GameArrays(turned, models))[names] == pytest.approx(ratings, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(rounds(champion=False))
def test_inverting_all_results_inverts_the_ratings(given: tuple[list[Game], int]) -> None:
    games, models = given
    turned = likeliest(GameArrays([one._replace(score=1 - one.score) for one in games], models))
    assert turned == pytest.approx(-likeliest(GameArrays(games, models)), abs=1e-6)


def test_ten_thousand_comparisons_are_ranked_quickly() -> None:
    chance = np.random.default_rng(1)
    games = [
        Game(index, int(one), int(other), float(chance.random() < 0.6))
        for index in range(10_000)
        for one, other in [sorted(chance.choice(20, 2, replace=False))]
    ]
    began = time.thread_time()
    found = strengths(games, 20)
    assert time.thread_time() - began < 10 and found.ratings[0] > 1000 > found.ratings[19]


# --- from comparisons --------------------------------------------------------------------------------


def answer(model: str, **more: Any) -> Brief:
    return Brief(model, f"{model}:latest", 1, 2 * 10**9, 10**9, 10, 10**8, 50, 0, None, "", 0)._replace(**more)


def outcome(vote: int | None, *answers: Brief, judged: list[tuple[int, int, int]] | None = None) -> Outcome:
    return Outcome(vote, dict(enumerate(answers)), judged or [])


A, B, C = answer("a"), answer("b"), answer("c")
FAILED = answer("d", success=False)


def ranked(given: list[Outcome], by: str) -> Any:
    met = GameCollector(by)
    for one in given:
        met.add(one)
    return met.as_json()


def standings(given: list[Outcome], by: str) -> dict[str, tuple[int, int, int, int]]:
    """By model, best first: wins, losses, ties, comparisons."""
    models = ranked(given, by)["models"]
    assert [one["rank"] for one in models] == list(range(1, len(models) + 1))
    return {one["model"]: tuple(one[name] for name in ("wins", "losses", "ties", "comparisons")) for one in models}


def test_a_vote_is_a_win_against_every_other_answer() -> None:
    given = [outcome(1, A, B, C, FAILED), outcome(TIE, A, B), outcome(NONE_GOOD, A, C), outcome(None, A, C)]
    assert standings(given, "votes") == {"b": (2, 0, 1, 2), "a": (0, 1, 1, 2), "c": (0, 1, 0, 1)}
    whole = ranked(given, "votes")
    assert (whole["comparisons"], whole["none_good"]) == (2, 1)
    assert ranked([outcome(None, A, B)], "all") == {"comparisons": 0, "none_good": 0, "models": []}
    assert ranked([], "votes")["models"] == []


def test_judgements_count_if_requested() -> None:
    given = [outcome(0, A, B, judged=[(0, 1, 1)]), outcome(None, A, C, judged=[(0, 1, TIE)])]
    assert standings(given, "votes") == {"a": (1, 0, 0, 1), "b": (0, 1, 0, 1)}
    assert standings(given, "judge") == {"b": (1, 0, 0, 1), "c": (0, 0, 1, 1), "a": (0, 1, 1, 2)}
    assert standings(given, "all")["a"] == (1, 1, 1, 2)


def test_two_names_of_one_model_are_merged_under_the_latest() -> None:
    newer, older = answer("x", named="a:latest"), answer("a")
    given = [outcome(0, newer, B), outcome(0, older, B), outcome(0, older, newer)]
    assert standings(given, "votes") == {"x": (2, 0, 0, 2), "b": (0, 2, 0, 2)}


def test_figures_match_a_hand_calculation() -> None:
    given = [
        outcome(0, answer("a", duration_ns=10**9, rating=1, cost=5, currency="EUR"), B),
        outcome(None, answer("a", duration_ns=3 * 10**9, eval_ns=0, eval_count=None, rating=-1), FAILED),
        outcome(None, answer("a", cached=True, duration_ns=1, eval_ns=0, letters=40, cost=0, currency="EUR"), C),
    ]
    counts = Counts()
    for one in given:
        counts.add(one)
    whole = counts.as_json()
    first = whole["models"][0]
    assert (whole["comparisons"], whole["votes"], first["model"]) == (3, 1, "a")
    assert (first["answers"], first["success_rate"], first["cached"], first["average_letters"]) == (3, 1.0, 1, 20.0)
    assert first["duration"] == {"p50": 2.0, "p90": 2.8} and first["first_token_ms"] == {"p50": 100.0, "p90": 100.0}
    assert (first["tokens_per_second"], first["up"], first["down"]) == (50.0, 1, 1)
    assert (orjson.dumps(first["cost"]), first["currency"]) == (b"0.000000005", "EUR")
    failed = whole["models"][-1]
    assert (failed["model"], failed["success_rate"], failed["average_letters"]) == ("d", 0.0, None)
    assert failed["duration"] == percentiles([], 1) == {"p50": None, "p90": None}
