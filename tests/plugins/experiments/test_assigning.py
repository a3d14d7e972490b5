"""The assignment of variants depends on names only."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from plugins.experiments.assigning import BUCKETS, hash_point, subject, subject_of, takes_part, variant_of
from plugins.experiments.definition import Definition
from plugins.experiments.index import Experiment, ExperimentIndex, Stop
from proxy.types import Call, Chat, Embed

TWO: list[dict[str, Any]] = [{"name": "a"}, {"name": "b"}]


def definition(**fields: Any) -> Definition:
    return Definition.model_validate({"variants": TWO, **fields})


def experiment(name: str = "one", **fields: Any) -> Experiment:
    return Experiment(f"exp_{name}", name, "active", definition(**fields), "api")


def call(**fields: Any) -> Call:
    return Call(**{"id": "req_1", "route": "chat", "model": "demo", "ask": Chat(()), "caller": "ann", **fields})


def test_the_split_follows_the_weights() -> None:
    variants = [{"name": "a", "weight": 5}, {"name": "b", "weight": 3}, {"name": "c", "weight": 2}]
    one = definition(variants=variants)
    counts = Counter(variant_of(one, "salt", f"user-{number}").name for number in range(2000))
    for name, share in (("a", 0.5), ("b", 0.3), ("c", 0.2)):
        assert abs(counts[name] / 2000 - share) < 0.035, "three standard deviations"


def test_every_number_belongs_to_a_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    variants = [{"name": "a", "weight": 1}, {"name": "b", "weight": 2}]
    one = definition(variants=variants)
    third = -(-(2**64) // 3)
    for place, name in ((0, "a"), (third - 1, "a"), (third, "b"), (2**64 - 1, "b")):
        monkeypatch.setattr("plugins.experiments.assigning.hash_point", lambda *parts, here=place: here)
        assert variant_of(one, "", "x").name == name


def test_more_traffic_adds_units_and_moves_none() -> None:
    units = [f"user-{number}" for number in range(2000)]
    before: set[str] = set()
    for traffic in (0.0, 0.1, 0.5, 1.0):
        one = definition(traffic=traffic)
        inside = {unit for unit in units if takes_part(one, "s", unit)}
        assert before <= inside and abs(len(inside) / 2000 - traffic) < 0.035
        before = inside
    some = [unit for unit in units if takes_part(definition(traffic=0.2), "s", unit)]
    shares = Counter(variant_of(one, "s", unit).name for unit in some)
    assert abs(shares["a"] / len(some) - 0.5) < 0.1, "taking part must be independent of the variant"


def test_another_salt_gives_an_independent_assignment() -> None:
    one, units = definition(), [f"user-{number}" for number in range(1000)]
    same = sum(variant_of(one, "x", unit) == variant_of(one, "y", unit) for unit in units)
    assert 400 < same < 600


def test_assignments_are_the_same_in_every_process_and_version() -> None:
    """Python's `hash` differs between processes, and a changed hash function would reassign every unit."""
    assert hash_point("variant", "s", "user-1") == 12554737464270470213
    assert variant_of(definition(), "s", "user-1").name == "b"


def test_the_unit_of_a_call() -> None:
    mine, theirs = call(about={"user": "u"}), call(about={"user": "u"}, caller="bob")
    assert subject_of("user", mine) == subject("user", "ann", "u") != subject_of("user", theirs)
    assert subject_of("user", call(about={"safety_identifier": "u"})) == subject_of("user", mine)
    assert (
        subject_of("user", call()) == subject_of("caller", mine) == subject_of("conversation", call(about={"user": 5}))
    )
    named = [call(extra={"conversation": "c"}), call(extra={"conversation": {"id": "c"}})]
    named.append(call(headers={"x-gemmapy-conversation": "c"}))
    assert len({subject_of("conversation", one) for one in named} | {subject("conversation", "ann", "c")}) == 1
    assert subject_of("request", call()) != subject_of("request", call(id="req_2"))
    assert len({subject_of("request", call(id=str(number))).key for number in range(20 * BUCKETS)}) == BUCKETS


def test_similar_names_are_different_units() -> None:
    assert subject("user", "ann", "x").key != subject("conversation", "ann", "x").key
    assert len(subject("user", "ann", "\ud800").key) == 32


def all_open(call: Call, one: Experiment) -> bool:
    return True


def test_a_call_takes_part_in_one_experiment_only() -> None:
    index = ExperimentIndex([experiment("two"), experiment("one", match={"models": "gemma*"})])
    chosen = index.chosen(call(model="gemma:2b"), all_open), index.chosen(call(), all_open)
    assert [one and one.experiment.name for one in chosen] == ["one", "two"]
    assert index.chosen(call(route="internal"), all_open) is None
    limited = ExperimentIndex([experiment("one"), experiment("two")])
    left_out = limited.chosen(call(models=("x",)), lambda call, one: one.name != "one")
    assert left_out is not None and left_out.experiment.name == "two"


@pytest.mark.parametrize(
    ("match", "fields", "fits"),
    [
        ({"models": "demo"}, {"model": "demo:latest"}, True),
        ({"models": ["a", "d*"]}, {}, True),
        ({"models": "other"}, {}, False),
        ({"callers": ["b*"]}, {}, False),
        ({"callers": "ann", "routes": "chat"}, {}, True),
        ({"routes": "internal"}, {"route": "internal"}, True),
        ({"routes": "completions"}, {}, False),
        ({}, {"route": "embeddings", "ask": Embed(inputs=("x",))}, True),
    ],
)
def test_which_calls_match(match: dict[str, Any], fields: dict[str, Any], fits: bool) -> None:
    assert (ExperimentIndex([experiment(match=match)]).chosen(call(**fields), all_open) is not None) == fits


def test_experiments_for_chats_do_not_affect_other_calls() -> None:
    index = ExperimentIndex([experiment(variants=[{"name": "a"}, {"name": "b", "system": "Be brief."}])])
    assert index.chosen(call(ask=Embed(inputs=("x",))), all_open) is None


def test_units_of_a_stopped_variant_get_the_control_and_are_not_counted() -> None:
    one = experiment()
    stopped = Experiment(one.id, one.name, "active", one.definition, "api", {"b": Stop(1.0, "bad")})
    for number in range(50):
        who = subject("user", "ann", str(number))
        before, after = one.assigned(who), stopped.assigned(who)
        assert before is not None and after is not None and after.variant.name == "a"
        assert after.subject == (who if before.variant.name == "a" else None)
