"""Comparisons of answers that use documents."""

from __future__ import annotations

import json
from pathlib import Path

from proxy.upstreams.demo import Said, Simulator
from tests.conftest import Start
from tests.plugins.comparison.asking import asks, compare, streamed
from tests.plugins.documents.asking import KEYS, TEXTS, fill

MODELS = ["demo", "demo-thinking"]
WHO = "Who was the keeper of the lantern?"


def config(url: str, folder: Path, **settings: int) -> str:
    told = {
        "database": {"url": url},
        "plugins": {"documents": {"embed": "demo-embed"}, "cache": {}, "comparison": settings},
        "chains": {"chat": ["documents", "cache"], "embeddings": [], "internal": []},
        "stores": {"texts": {"lancedb": str(folder / "lance")}},
    }
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in told.items()) + KEYS


async def test_every_answers_sources_are_returned_and_stored(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path)) as run:
        ids = await fill(run)
        told = await compare(run, prompt=WHO, models=MODELS, rag=True)
        for one in told["results"]:
            (source,) = one["sources"]
            assert (source["n"], source["document_id"], source["content"]) == (1, ids["Lanterns"], TEXTS["Lanterns"])
        kept = await asks(run, "GET", f"/api/comparisons/{told['comparison_id']}")
        assert kept["results"] == told["results"]
        (listed,) = (await asks(run, "GET", "/api/comparisons"))["data"]
        assert all("sources" not in one for one in listed["results"])
        events = await streamed(run, prompt=WHO, models=MODELS, rag=True)
        done = [told["result"] for name, told in events if name == "result.done"]
        assert [one["sources"][0]["document_id"] for one in done] == [ids["Lanterns"]] * 2
        plain = await compare(run, prompt=WHO, models=MODELS)
        assert all("sources" not in one for one in plain["results"])


async def test_sources_are_the_first_to_be_left_out_when_space_is_short(
    start: Start, database_url: str, tmp_path: Path
) -> None:
    ollama = Simulator(say=lambda body: Said("It was Mabel Quill."))
    async with start(config(database_url, tmp_path, max_bytes=300), ollama) as run:
        await fill(run)
        told = await compare(run, prompt=WHO, models=MODELS, rag=True)
        assert all(one["sources"] and "cut" not in one for one in told["results"])
        kept = await asks(run, "GET", f"/api/comparisons/{told['comparison_id']}")
        for one, whole in zip(kept["results"], told["results"], strict=True):
            assert one["cut"] and "sources" not in one and one["response"] == whole["response"] == "It was Mabel Quill."
