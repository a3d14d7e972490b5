"""The semantic cache: hits for questions that mean the same in other words."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.cache.semantic import semantic
from plugins.cache.semantic.index import MOST, ContextGroup, Index
from plugins.cache.semantic.likeness import LONGEST, alike, at_odds
from proxy.upstreams.demo import Simulator
from proxy.upstreams.demo.answers import Said
from tests.conftest import Running, Start
from tests.whole.asking import user

FRANCE = "What is the capital of France?"
AGAIN = "what is the capital of France"
CHAINS = "chains: {chat: [cache], internal: [cache]}\n"
KEYS = "keys: {alice: a-key, ops: {key: o-key, role: admin}}\n"
ALICE, OPS = ({"Authorization": f"Bearer {key}"} for key in ("a-key", "o-key"))


def config(more: str = ", audit: 0") -> str:
    return f"plugins: {{cache: {{semantic: {{model: demo-embed{more}}}}}}}\n{CHAINS}{KEYS}"


async def asked(run: Running, text: str, headers: dict[str, str] = ALICE, **body: Any) -> tuple[str, str | None]:
    """The cache's outcome, and the similarity of the question whose answer was used."""
    document = {"model": "demo", "messages": user(text), **body}
    response = await run.http.post(f"{run.url}/v1/chat/completions", json=document, headers=headers)
    assert response.status == 200, await response.text()
    await response.read()
    await run.settled()
    return response.headers["x-gemmapy-cache"], response.headers.get("x-gemmapy-cache-similarity")


async def stats(run: Running) -> Any:
    return (await (await run.http.get(f"{run.url}/api/cache/stats", headers=OPS)).json())["semantic"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (FRANCE, AGAIN),
        (FRANCE, "Tell me what the capital of France is."),
        ("How do I reset my password?", "How can I reset the password"),
        ("I don't like tea, what now?", "I do not like tea, what now?"),
        ("Explain how TCP works", "Describe how TCP works"),
    ],
)
def test_paraphrases_match(one: str, other: str) -> None:
    assert alike(one, other) and alike(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Who won Super Bowl XLVII?", "Who won Super Bowl XLVIII?"),
        ("What is 17 + 4?", "What is 17 + 5?"),
        ("What is 2 + 2?", "What is 2 * 2?"),
        ("Is it two or three?", "Is it two or four?"),
        (FRANCE, "What is the capital of Spain?"),
        ("Is Paris large?", "Is paris large?"),
        ("Paris is where?", "London is where?"),
        ("Which tea is good for sleep?", "Which tea is not good for sleep?"),
        ("Can I eat this?", "Can't I eat this?"),
        ("What happened on Monday?", "What happened on Tuesday?"),
        ("Will it rain today?", "Will it rain tomorrow?"),
        ("Turn on the light", "Turn off the light"),
        ("Which model is faster?", "Which model is slower?"),
        ("Does the dog bite the man?", "Does the man bite the dog?"),
        ("flights from Oslo to Rome", "flights from Rome to Oslo"),
        (
            "trade of poorer countries with workers in richer ones",
            "trade of richer countries with workers in poorer ones",
        ),
        ("a" * (LONGEST + 1), "a" * (LONGEST + 1)),
        ("Ist der hund erlaubt", "Ist der hund verboten"),
        ("was kostet es im januar", "was kostet es im februar"),
        ("今天会下雨吗", "明天会下雨吗"),
    ],
)
def test_questions_with_a_decisive_difference_do_not_match(one: str, other: str) -> None:
    assert not alike(one, other) and not alike(other, one)


def test_identical_questions_match_in_every_language() -> None:
    assert alike("Wann beginnt der Winter?", "Wann beginnt der Winter") and alike("今天会下雨吗", "今天会下雨吗\uff1f")


@pytest.mark.parametrize(
    ("one", "other", "odds"),
    [
        ("Yes, it is allowed.", "No, it is not allowed.", True),
        ("The capital is Paris.", "The capital is London.", True),
        ("It takes 5 minutes.", "It takes 12 minutes.", True),
        ("The capital is Paris.", "Paris is the capital of France.", False),
        ("Plants make sugar of light.", "Photosynthesis is how plants make sugar.", False),
        ("It was Ada Lovelace in 1843.", "Ada Lovelace", False),
        ("Many say so. " * 20 + "It was Ada.", "It was Bob. " + "Many say so. " * 20, False),
        ("", "", False),
    ],
)
def test_contradicting_answers_are_recognised(one: str, other: str, odds: bool) -> None:
    assert at_odds(one, other) is at_odds(other, one) is odds


async def test_a_similar_question_is_a_hit(start: Start) -> None:
    async with start(config()) as run:
        assert await asked(run, FRANCE) == ("miss", None)
        assert await asked(run, AGAIN) == ("hit", "1.0000")
        assert await asked(run, AGAIN, stream=True) == ("hit", "1.0000")
        assert await asked(run, FRANCE) == ("hit", None)
        assert run.ollama.finished == 3, "one generation, and the embeddings of two questions"
        told = await stats(run)
        assert (told["hits"], told["questions"], told["errors"]) == (2, 1, 0)


@pytest.mark.parametrize(
    "body",
    [
        {"model": "demo-rendered"},
        {"temperature": 0.1},
        {"messages": [{"role": "system", "content": "Be brief."}, *user(AGAIN)]},
        {"messages": [*user("hello"), {"role": "assistant", "content": "hi"}, *user(AGAIN)]},
        {"response_format": {"type": "json_object"}},
        {"tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]},
        {"messages": user(f"{AGAIN} {AGAIN.title()}")},
    ],
)
async def test_everything_but_the_question_must_be_equal(start: Start, body: dict[str, Any]) -> None:
    async with start(config()) as run:
        assert await asked(run, FRANCE) == ("miss", None)
        assert await asked(run, AGAIN, **body) == ("miss", None)


async def test_callers_do_not_share_answers(start: Start) -> None:
    async with start(config()) as run:
        assert await asked(run, FRANCE) == ("miss", None)
        assert await asked(run, AGAIN, OPS) == ("miss", None)


async def test_the_same_words_in_another_order_do_not_match(start: Start) -> None:
    async with start(config()) as run:
        assert await asked(run, "Does the dog bite the man?") == ("miss", None)
        assert await asked(run, "Does the man bite the dog?") == ("miss", None), "although their embeddings are equal"


async def test_no_cache_prevents_a_semantic_hit(start: Start) -> None:
    async with start(config()) as run:
        assert await asked(run, FRANCE) == ("miss", None)
        assert await asked(run, AGAIN, {**ALICE, "Cache-Control": "no-cache"}) == ("miss", None)


async def test_calls_are_answered_without_the_embedding_model(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    text = config().replace("demo-embed", "nothing")
    async with start(text) as run:
        assert await asked(run, FRANCE) == await asked(run, AGAIN) == ("miss", None)
        assert (await stats(run))["errors"] == 2
    assert sum("the semantic cache is skipped" in one.getMessage() for one in caplog.records) == 1


async def test_an_answer_rated_down_is_not_used_again(start: Start, tmp_path: Path) -> None:
    own = config().replace("chat: [cache]", "chat: [usage, cache]").replace("{cache:", "{usage: {}, cache:")
    text = f"database: {{url: 'sqlite:///{tmp_path}/records.db'}}\n{own}"
    async with start(text) as run:
        assert await asked(run, FRANCE) == ("miss", None)
        assert await asked(run, AGAIN, {**ALICE, "X-Request-Id": "bad"}) == ("hit", "1.0000")
        async with run.http.post(f"{run.url}/api/metrics/bad/rate", json={"rating": "down"}, headers=ALICE) as rated:
            assert rated.status == 200, await rated.text()
        assert await asked(run, FRANCE) == ("miss", None), "the entry is gone"
        assert await asked(run, AGAIN) == ("miss", None), "and the pair no longer matches"
        assert (await stats(run))["vetoed"] == 1
        async with run.http.post(f"{run.url}/api/cache/clear", headers=ALICE) as cleared:
            assert cleared.status == 200, await cleared.text()
        assert await asked(run, AGAIN) == ("miss", None)
        assert await asked(run, FRANCE) == ("miss", None), "nor in the other direction"


@pytest.mark.parametrize("other", ["Paris", "Nowhere, and nobody ever heard of it", "London"])
async def test_an_audit_counts_wrong_hits(start: Start, other: str) -> None:
    right = other == "Paris"
    answers = iter(["The capital is Paris.", f"The capital is {other}."])
    async with start(config(", audit: 1"), Simulator(say=lambda body: Said(next(answers, "more")))) as run:
        assert await asked(run, FRANCE) == ("miss", None)
        assert await asked(run, AGAIN) == ("hit", "1.0000")
        async with asyncio.timeout(20):
            while not (told := await stats(run))["audited"]:  # noqa: ASYNC110  (there is no event)
                await asyncio.sleep(0.01)
        wrong = int(not right)
        assert (told["audited"], told["wrong"], told["wrong_hit_rate"]) == (1, wrong, float(wrong))
        assert told["vetoed"] == wrong
        assert (await asked(run, AGAIN))[0] == ("hit" if right else "miss"), (
            "a pair found to be wrong no longer matches"
        )


async def test_an_answer_rated_down_is_not_used_in_other_processes_either(start: Start, tmp_path: Path) -> None:
    """Two servers with one store and database, like two workers; the rating goes to the other one."""
    own = (
        config()
        .replace("chat: [cache]", "chat: [usage, cache]")
        .replace("{cache: {", "{usage: {}, cache: {store: it, ")
    )
    text = f"database: {{url: 'sqlite:///{tmp_path}/r.db'}}\nstores: {{it: {{disk: {{path: {tmp_path}/c.db}}}}}}\n{own}"
    async with start(text) as run, start(text) as other:
        assert await asked(run, FRANCE) == ("miss", None)
        assert await asked(run, AGAIN, {**ALICE, "X-Request-Id": "bad"}) == ("hit", "1.0000")
        async with asyncio.timeout(20):
            while True:  # until the call is recorded
                rate = f"{other.url}/api/metrics/bad/rate"
                async with other.http.post(rate, json={"rating": "down"}, headers=ALICE) as rated:
                    if rated.status == 200:
                        break
                await asyncio.sleep(0.05)
        async with asyncio.timeout(20):
            while (await stats(other))["vetoed"] != 1:  # noqa: ASYNC110  (there is no event)
                await asyncio.sleep(0.01)
            while (await asked(run, FRANCE))[0] != "miss":  # noqa: ASYNC110  (until the entry is gone)
                await asyncio.sleep(0.01)
        assert await asked(run, AGAIN) == ("miss", None), (
            "and the pair no longer matches in the process that gave the answer"
        )


async def test_after_a_slow_embedding_the_next_calls_do_not_wait(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "PATIENCE", 0.0)
    async with start(config()) as run:
        assert await asked(run, FRANCE) == await asked(run, AGAIN) == ("miss", None)
        assert (await stats(run))["errors"] == 1


def test_the_oldest_question_is_evicted_and_not_the_newest() -> None:
    sphere, one = ContextGroup(1), np.ones(1, np.float32)
    for number in range(7):
        sphere.add(str(number), "q", one, 4)
    assert sorted(sphere.places) == ["3", "4", "5", "6"]
    assert {where for where, _ in sphere.asked} == set(sphere.places)
    assert all(sphere.asked[place][0] == where for where, place in sphere.places.items())


def test_memory_is_bounded_if_every_question_has_its_own_context() -> None:
    index, one = Index(), np.ones(100, np.float32)
    for number in range(50):
        index.add(f"{number}", "where", "q", one, 20)
    assert index.size == 20
    assert sum(sphere.vectors.nbytes for sphere in index.groups.values()) <= 2 * 20 * one.nbytes
    for number in range(50):
        index.add("same", f"{number}", "q", one, 20)
    assert index.size <= 20


def test_the_index_is_bounded() -> None:
    index, one = Index(), np.ones(1, np.float32)
    for number in range(MOST + 5):
        index.add("full", str(number), "q", one, 10 * MOST)
    assert index.size == MOST and not index.near("empty", one, 0.9)
    for number in range(MOST):
        index.add(f"of one {number}", "where", "q", one, MOST)
    assert index.size <= MOST and "full" not in index.groups
    index.drop(f"of one {MOST - 1}", "where")
    assert index.near(f"of one {MOST - 1}", one, 0.9) == []
    index.add("wider", "a", "q", np.ones(2, np.float32) / 2**0.5, MOST)
    assert index.near("wider", one, 0.9) == [], "a vector of another length matches none"
