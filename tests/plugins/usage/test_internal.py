"""Internal calls that plugins make are recorded separately from the call that caused them."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import Start
from tests.plugins.cache.test_semantic import AGAIN, FRANCE
from tests.plugins.usage.asking import OPS, A, chat, config, get, written


async def test_the_embedding_of_a_question_is_recorded_as_an_internal_call(start: Start, tmp_path: Path) -> None:
    """It has no template, and is not the call that is rated by the request ID."""
    text = config(f"sqlite:///{tmp_path}/r.db", chain="metrics, usage, templates, cache")
    text = text.replace('"cache": {}', '"cache": {"semantic": {"model": "demo-embed"}}')
    async with start(text) as run:
        id = await chat(run, A, template={"name": "summarize", "variables": {"text": "What is a proxy?"}}, messages=[])
        found = {one["route"]: one for one in await written(run, 2)}
        assert (found["chat"]["template"], found["internal"]["template"]) == ("summarize@1", "")
        assert (found["internal"]["caller"], found["internal"]["model"]) == ("alice", "demo-embed:latest")
        by = (await get(run, "/api/metrics/templates"))["templates"]
        assert [(one["template"], one["total_requests"]) for one in by] == [(None, 1), ("summarize@1", 1)]
        rated = await run.http.post(f"{run.url}/v1/feedback", json={"request_id": id, "rating": "down"}, headers=A)
        assert rated.status == 200
        assert {one["route"]: one["rating"] for one in await written(run, 2)} == {"chat": -1, "internal": 0}
        assert (await get(run, "/api/metrics/endpoints", OPS))["endpoints"][0]["satisfaction"]["down"] == 1


async def test_an_answer_generated_for_an_audit_is_recorded(start: Start, tmp_path: Path) -> None:
    text = config(f"sqlite:///{tmp_path}/r.db", chain="metrics, usage, cache")
    text = text.replace('"cache": {}', '"cache": {"semantic": {"model": "demo-embed", "audit": 1}}')
    async with start(text) as run:
        for question in (FRANCE, AGAIN):
            await chat(run, A, messages=[{"role": "user", "content": question}])
            await run.settled()
        found = await written(run, 3 + 2 + 1)
        chats = [(one["route"], one["cache"]) for one in found if one["model"] == "demo:latest"]
        assert sorted(chats) == [("chat", "hit"), ("chat", "miss"), ("internal", "")]
        (anew,) = [one for one in found if one["route"] == "internal" and one["model"] == "demo:latest"]
        assert anew["completion_tokens"] > 0 and anew["cost"] > 0 and anew["caller"] == "alice"
        assert anew["call"] not in {one["call"] for one in found if one is not anew}
