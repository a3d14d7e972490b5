"""The default weight of words against vectors."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from plugins.documents.scores import Hit
from plugins.documents.weighing import KEPT, POOR, SAMPLE, ModelQuality, Weigher, coverage, model_quality, weight
from proxy.stores.vectors import Row
from proxy.upstreams.demo import embedding
from proxy.upstreams.demo.vectors import Vector, unit, vector
from tests.conftest import Start
from tests.plugins.documents.asking import A, ask, config, fill

GOOD = ModelQuality(1.0, 0.5)


def hit(text: str, words: float, cosine: float = 0.5, model: str = "m") -> Hit:
    return Hit(Row(text, 1, 0, text, "[0,1,0,0,[]]"), "c", model, cosine, words)


def knowing(text: str, dimensions: int) -> Vector:
    """A good model: the sample's questions are close to their answers; other texts keep their vectors."""
    if text not in SAMPLE:
        return vector(text, dimensions)
    pair = vector(f"pair {SAMPLE.index(text) % (len(SAMPLE) // 2)}", dimensions)
    return unit(pair.astype(float) + vector(text, dimensions))


def test_a_model_gets_weight_if_its_answers_are_nearer_than_other_texts() -> None:
    assert model_quality(np.array([vector(text, 384) for text in SAMPLE])).trust == 0
    good = model_quality(np.array([knowing(text, 384) for text in SAMPLE]))
    assert good.trust == 1 and good.apart > 0.1
    same = model_quality(np.tile(vector("one", 384), (len(SAMPLE), 1)))
    assert (same.trust, round(same.apart, 6)) == (0, 0), "the model sees no difference at all"


def test_coverage_weighs_words_by_how_well_they_distinguish_texts() -> None:
    mill = [
        hit(f"Kestle Mill. {text}", words)
        for text, words in (("It was built of oak, and painted.", 5.0), ("It burnt down.", 4.0))
    ]
    named = coverage("What was Kestle Mill built of?", mill), coverage("Whose bid won Kestle Mill?", mill)
    assert named[0] > 0.8 and named[1] < 0.3, "a name in all texts counts little"
    assert coverage("Where did it burn down?", mill) < coverage("How is oak built?", mill), (
        "the best text's words count"
    )
    assert coverage("painter", mill) == 1, "whatever its ending is"
    assert coverage("C7", [hit("the form C7 is blue", 2.0), hit("blue", 0.0)]) == 1, "short names are words, too"
    for nothing in ("", "?", "what", "\0"):
        assert coverage(nothing, mill) == 0
    assert coverage("oak", []) == coverage("oak", [hit("oak", 0.0)]) == 0, "a text not found by words covers nothing"


def test_a_long_question_with_long_texts_is_fast() -> None:
    texts = [hit(f"{number} " * 2000, float(number)) for number in range(300)]
    begun = time.process_time()
    coverage(" ".join(map(str, range(5000))), texts)
    assert time.process_time() - begun < 0.5  # it takes a hundredth of that here


def test_each_score_counts_as_much_as_it_discriminates() -> None:
    assert weight(GOOD, 0.8, [0.6, 0.2]) == pytest.approx(0.5)
    assert weight(GOOD, 0.4, [0.6, 0.2]) == pytest.approx(1 / 3), "the question is paraphrased"
    assert weight(GOOD, 0.8, [0.4, 0.3]) == pytest.approx(0.8), "none is clearly nearer"
    assert weight(GOOD, 0.0, [0.4, 0.4]) == 0 and weight(GOOD, 0.5, [0.4]) == 1
    assert weight(ModelQuality(0.0, 0.0), 0.8, [0.6, 0.2]) == weight(GOOD, 0.8, []) == POOR
    assert weight(ModelQuality(0.5, 0.5), 0.8, [0.6, 0.2]) == pytest.approx(0.6), "half way"


def test_each_model_has_its_own_weight_and_the_number_stored_is_bounded() -> None:
    weigher, hits = Weigher(), [hit("oak", 2.0, 0.6), hit("elm", 0.0, 0.1), hit("oaks", 1.0, 0.3, "n")]
    assert weigher.weights(["m", "n"], "oak", hits) == {"m": POOR, "n": POOR}
    weigher.learn("m", np.array([knowing(text, 384) for text in SAMPLE]))
    told = weigher.weights(["m", "n"], "oak", hits)
    assert 0 < told["m"] < POOR and told["n"] == POOR
    for number in range(KEPT + 5):
        weigher.learn(f"model{number}", np.eye(len(SAMPLE), dtype=np.float32))
    assert len(weigher.qualities) == KEPT and "m" not in weigher.qualities


async def test_a_search_reports_the_weight_of_words(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        await fill(run)

        async def counted(query: str, **more: object) -> float:
            told = await ask(run, "POST", "/search", A, 200, query=query, explain=True, **more)
            (share,) = {one["words"] for one in [one["explain"] for one in told["results"]] + told["dropped"]}
            return float(share)

        assert await counted("Who kept the lantern?", words=0.3) == 0.3
        assert await counted("Who kept the lantern?") == POOR, "the demo's vectors know no meaning"
        assert await counted("Zzyzx") == 0, "no word was found"

    asked: list[str] = []

    def told_of(text: str, dimensions: int) -> Vector:
        asked.append(text)
        return knowing(text, dimensions)

    monkeypatch.setattr(embedding, "vector", told_of)
    async with start(config(f"sqlite:///{tmp_path}/y.db", tmp_path / "y")) as run:
        await fill(run)
        assert not set(SAMPLE) & set(asked), "adding a document does not compute it"
        same, other = await counted("the lantern was lit"), await counted("Which beacon shone at the lantern?")
        assert 0 < other < same < 1
        assert sum(text == SAMPLE[0] for text in asked) == 1, "once, and not for every question"
