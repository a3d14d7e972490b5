"""The option `closer`: passages found are scored by their sentences."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from plugins.documents.closer import SENTENCES, pieces_of
from tests.conftest import Running, Start
from tests.plugins.documents.asking import add, ask, config, titles

SAID = "The spare anchor of the ferry lies behind the lifeboat shed."
NOISE = (
    "Gulls follow each boat that comes in from the west. Nets dry upon long poles until the rain sets in again. "
    "Every autumn somebody paints the benches, and every spring somebody scratches a name into them. "
    "Children count crabs below the wall, while old men argue over tides and tobacco. "
)
QUESTION = "Where is the spare anchor of the ferry?"


def test_pieces_are_two_sentences_each_and_never_many() -> None:
    three = ["The first sentence is here.", "Is this the second sentence?", "And so the third has come!"]
    assert pieces_of(" ".join(three)) == [" ".join(three[:2]), " ".join(three[1:])]
    assert pieces_of("Only one.") == ["Only one."] and pieces_of("") == [""]
    for long in ("a. " * 4000, "x\n" * 4000, "y" * 8000):
        pieces = pieces_of(long)
        assert len(pieces) <= SENTENCES and set(long.split()) == set(" ".join(pieces).split())


@pytest_asyncio.fixture(loop_scope="function")
async def filled(start: Start, tmp_path: Path) -> AsyncIterator[Running]:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path, words=0)) as run:
        await add(run, "Harbour", NOISE + SAID + " " + NOISE)
        await add(run, "Notice", "Where is the captain of the ferry? Nobody knows where.")
        await add(run, "Clocks", "The clock of the town hall strikes thirteen at noon.")
        yield run


async def test_closer_finds_one_sentence_in_a_long_passage(filled: Running) -> None:
    assert (await titles(filled, QUESTION))[0] == "Notice", (
        "in the embedding of a long passage one sentence counts little"
    )
    assert (await titles(filled, QUESTION, closer=3))[0] == "Harbour"
    assert (await titles(filled, QUESTION, closer=1))[0] == "Notice", "only the best passage is examined"
    assert (await titles(filled, QUESTION, closer=50, top_k=1)) == ["Harbour"]


async def test_closer_changes_scores_but_not_the_explained_cosine(filled: Running) -> None:
    plain, closer = [
        await ask(filled, "POST", "/search", query=QUESTION, explain=True, closer=most, top_k=2) for most in (0, 2)
    ]
    cosines = [{one["title"]: one["explain"]["cosine"] for one in told["results"]} for told in (plain, closer)]
    assert cosines[0] == cosines[1]
    scores = [one["score"] for one in closer["results"]] + [one["score"] for one in closer["dropped"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)


async def test_pieces_are_embedded_once(filled: Running) -> None:
    assert await titles(filled, QUESTION, closer=3)
    before = filled.ollama.finished
    assert await titles(filled, QUESTION, closer=3)
    assert filled.ollama.finished == before, "they are cached like all embeddings"


async def test_an_explicit_weight_of_words_turns_closer_off_unless_requested(start: Start, tmp_path: Path) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path, closer=5)) as run:
        await add(run, "Harbour", NOISE + SAID + " " + NOISE)
        await add(run, "Notice", "Where is the captain of the ferry? Nobody knows where.")
        assert (await titles(run, QUESTION))[0] == "Harbour"
        assert (await titles(run, QUESTION, words=0))[0] == "Notice"
        assert (await titles(run, QUESTION, words=0, closer=2))[0] == "Harbour"
        for wrong in (-1, 51, "x"):
            told = await ask(run, "POST", "/search", {"Authorization": "Bearer a-key"}, 400, query="?", closer=wrong)
            assert "closer" in told["error"]["message"]
