"""The order of results: by scores, by ranks, and by a reranking model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plugins.documents.scores import Hit, by_rank, ranked
from proxy.errors import ConfigError
from proxy.stores.vectors import Row
from proxy.upstreams.demo import Fault, Said, Simulator
from tests.conftest import Start
from tests.plugins.documents.asking import A, ask, config, fill, titles
from tests.plugins.documents.test_grounding import chat, last_user_message

WHO = "Who was the keeper of the lantern?"


def hit(name: str, cosine: float, words: float, near: int | None, worded: int | None, model: str = "m") -> Hit:
    return Hit(Row(name, 1, 0, name, "[0,1,0,0,[]]"), "c" + model, model, cosine, words, near, worded)


def words(share: float) -> dict[str, float]:
    return {"m": share, "n": share}


def names(hits: list[Hit]) -> str:
    return "".join(one.row.document for one in hits)


def test_ranks_are_fused_independently_of_scores() -> None:
    hits = [hit("a", 0.9, 0.0, 1, None), hit("b", 0.3, 9.0, 3, 1), hit("c", 0.8, 0.1, 2, 2)]
    mixed = by_rank(hits, words(0.5))
    assert names(mixed) == "bca"
    assert [one.score for one in mixed] == pytest.approx([(1 + 61 / 63) / 2, 61 / 62, 0.5])
    assert names(ranked(hits, words(0.5))) != names(mixed)
    assert names(by_rank(hits, words(0.0))) == "acb" and names(by_rank(hits, words(1.0))) == "bca"
    three = [hit("a", 0.9, 0, 1, None), hit("b", 0.1, 0, 1, None, "n"), hit("c", 0.2, 0, 1, None)]
    several = by_rank(three, words(0.0))
    assert names(several) == "abc"  # cosines of different models are not comparable


async def test_a_search_can_fuse_ranks_and_says_so(start: Start, tmp_path: Path) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        await fill(run)
        for fusion in ("scores", "ranks"):
            told = await ask(run, "POST", "/search", A, 200, query=WHO, fusion=fusion, explain=True)
            assert told["fusion"] == fusion and told["results"][0]["title"] == "Lanterns"
            second = told["results"][1]["score"]
            assert (second > 0.2) == (fusion == "ranks")  # fused scores say nothing about distances
        assert "fusion" not in await ask(run, "POST", "/search", A, 200, query=WHO)
        assert (await ask(run, "POST", "/search", A, 400, query=WHO, fusion="x"))["error"]["param"] == "fusion"
        assert (await ask(run, "POST", "/search", A, 400, query=WHO, rerank=True))["error"]["param"] == "rerank"


async def test_a_model_can_rerank_passages(start: Start, tmp_path: Path) -> None:
    asked: list[str] = []

    def say(body: dict[str, Any]) -> Said | None:
        if "Say of each passage" not in str(body["messages"][0]):
            return None
        asked.append(body["messages"][1]["content"])
        assert body["format"]["properties"]["grades"]["minItems"] == 3
        lines = [line for line in asked[-1].splitlines() if " [" in line]
        return Said(json.dumps({"grades": [9 if "Clocks" in line else 2 for line in lines]}))

    text = config(f"sqlite:///{tmp_path}/x.db", tmp_path, rerank="demo", min_similarity=-1)
    async with start(text, Simulator(say=say)) as run:
        await fill(run)
        told = await ask(run, "POST", "/search", A, 200, query=WHO, explain=True)
        assert [one["title"] for one in told["results"]][:2] == ["Clocks", "Lanterns"]
        assert [one["explain"]["grade"] for one in told["results"]] == [9, 2, 2] and "rerank_failed" not in told
        assert (await titles(run, WHO, rerank=False))[0] == "Lanterns" and len(asked) == 1
        assert asked[0].startswith(f"Question: {WHO}\n\n#")
        assert (await chat(run, rag={"top": 1}))["rag"] == "1 passage of 1" and "[1] Clocks" in last_user_message(run)


@pytest.mark.parametrize(
    ("fault", "said", "why"),
    [
        (Fault("stall", path="/api/chat", times=9), "", "took more than 0.2 seconds"),
        (Fault("status", status=500, path="/api/chat", times=9), "", ""),
        (None, '{"grades": [1]}', ""),
        (None, "no JSON", ""),
    ],
    ids=["slow", "failing", "too few", "no JSON"],
)
async def test_if_the_reranker_fails_the_order_stays_and_the_answer_says_so(
    start: Start, tmp_path: Path, fault: Fault | None, said: str, why: str
) -> None:
    ollama = Simulator(say=lambda body: Said(said) if "Say of each passage" in str(body) else None)
    seconds = 0.2 if why else 20
    text = config(f"sqlite:///{tmp_path}/x.db", tmp_path, rerank="demo", rerank_timeout=seconds, min_similarity=-1)
    async with start(text, ollama) as run:
        await fill(run)
        if fault is not None:
            ollama.faults.append(fault)
        told = await ask(run, "POST", "/search", A, 200, query=WHO, explain=True)
        assert told["results"][0]["title"] == "Lanterns" and told["rerank_failed"] and why in told["rerank_failed"]
        assert told["results"][0]["explain"]["grade"] is None
        if fault is None:
            assert (await chat(run, rag={"top": 1}))["rag"] == "1 passage of 1, not reranked"


ORDERS = [
    ("documents, conversations", "'conversations' stores what callers say and must come before 'documents'"),
    ("documents, templates", "'templates' sets the messages and the model and must come before 'documents'"),
    ("cache, documents", "'documents' changes the request and must come before 'cache'"),
    ("documents, limits", ""),
    ("retry, documents", ""),
]


@pytest.mark.parametrize(("order", "problem"), ORDERS)
async def test_a_chain_with_documents_at_a_wrong_place_is_refused(
    start: Start, tmp_path: Path, order: str, problem: str
) -> None:
    plugins = ", ".join(f"{name}: {{}}" for name in order.split(", "))
    text = f"database: {{url: 'sqlite:///{tmp_path}/x.db'}}\nplugins: {{{plugins}}}\nchains: {{chat: [{order}]}}\n"
    if problem:
        with pytest.raises(ConfigError, match=problem):
            async with start(text):
                pass
    else:
        async with start(text) as run:
            assert (await run.chat()).status == 200


GUIDE = """\
name: guide
input: question
variables:
  question: {description: What is asked.}
messages:
- role: user
  content: >-
    The clock of the town hall strikes thirteen at noon, because its second gear has a tooth too many. {{question}}
"""


async def test_the_search_uses_the_users_text_and_not_the_templates(start: Start, tmp_path: Path) -> None:
    """The template mentions clocks; the user asks about the lantern."""
    library = tmp_path / "library"
    library.mkdir()
    (library / "guide.yaml").write_text(GUIDE)
    text = config(f"sqlite:///{tmp_path}/x.db", tmp_path)
    text = text.replace('"cache": {}}', f'"cache": {{}}, "templates": {{"path": "{library}"}}}}')
    text = text.replace('["documents", "cache"]', '["templates", "documents", "cache"]')
    async with start(text) as run:
        await fill(run)
        told = await chat(run, rag={"top": 1}, template="guide", messages=[{"role": "user", "content": WHO}])
        assert told["rag"] == "1 passage of 1" and "[1] Lanterns" in last_user_message(run)
