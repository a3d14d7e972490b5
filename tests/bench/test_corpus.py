"""The benchmark's questions use the words that they claim to use."""

from __future__ import annotations

import re

from tests.bench.corpus import FACTS, county

LITTLE = frozenset(
    re.findall(
        r"\w+", "a at by do does from has have had in is it its of on that the there to was were what when which"
    )
)


def stems(text: str) -> set[str]:
    found = [word for word in re.findall(r"[a-z]+", text.lower()) if word not in LITTLE]
    return {re.sub(r"(?:ing|ed|es|s)$", "", word) for word in found}


def test_every_fact_has_a_question_that_paraphrases_it() -> None:
    for fact in FACTS:
        assert stems(fact.sentence.replace("{x}", "")) & stems(fact.asked.replace("{name}", "")), fact
        assert not stems(fact.sentence.replace("{x}", "")) & stems(fact.otherwise.replace("{name}", "")), fact


def test_the_corpus_is_large_enough_and_every_answer_is_in_its_article() -> None:
    articles, questions = county()
    contents = {one.title: one.content for one in articles}
    assert len(contents) >= 300 and len({one.text for one in questions}) >= 600
    assert all(one.answer in contents[one.title] for one in questions)
    assert (articles, questions) == county()
