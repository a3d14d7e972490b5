"""Inspecting and invalidating the cache, with every kind of store."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from plugins.cache.api import PAUSE, Api, contains
from plugins.cache.invalidations import Invalidations
from plugins.cache.stats import Stats
from proxy.clock import Clock
from proxy.host import WorkerInfo
from proxy.stores.keyvalue import NewValue
from proxy.stores.memory import Memory
from tests.conftest import Running, Start
from tests.servers import redis_server
from tests.whole.asking import error_of, user

KEYS = "keys: {alice: a-key, bob: b-key, ops: {key: o-key, role: admin}}\n"
A, B, OPS = ({"Authorization": f"Bearer {key}"} for key in ("a-key", "b-key", "o-key"))
NOBODY: dict[str, str] = {}


@pytest.fixture(params=["memory", "disk", "redis"])
async def run(request: pytest.FixtureRequest, start: Start, tmp_path: Path) -> AsyncIterator[Running]:
    """A server with keys, whose cache is in each kind of store in turn."""
    async with AsyncExitStack() as stack:
        kinds = {"memory": "memory: {}", "disk": f"disk: {{path: '{tmp_path}/c.db'}}", "redis": ""}
        if request.param == "redis":
            server = await stack.enter_async_context(redis_server(tmp_path))
            kinds["redis"] = f"redis: '{server.url}', timeout: 30"
        text = (
            f"stores: {{kept: {{{kinds[request.param]}}}}}\nplugins: {{cache: {{store: kept}}}}\n"
            f"chains: {{chat: [cache], embeddings: [cache]}}\n{KEYS}"
        )
        yield await stack.enter_async_context(start(text))


async def chat(run: Running, who: dict[str, str], text: str, **body: Any) -> str:
    document = {"model": "demo", "messages": user(text), **body}
    response = await run.http.post(f"{run.url}/v1/chat/completions", json=document, headers=who)
    assert response.status == 200
    await response.read()
    await run.settled()
    return str(response.headers["x-gemmapy-cache"])


async def post(run: Running, who: dict[str, str], name: str, **body: Any) -> Any:
    response = await run.http.post(f"{run.url}/api/cache/{name}", json=body, headers=who)
    assert response.status == 200, await response.text()
    return await response.json()


async def stats(run: Running, who: dict[str, str]) -> Any:
    return await (await run.http.get(f"{run.url}/api/cache/stats", headers=who)).json()


async def filled(run: Running) -> None:
    for who, text, model in ((A, "alpha one", "demo"), (A, "Alpha TWO", "demo-rendered"), (B, "beta one", "demo")):
        assert await chat(run, who, text, model=model) == "miss"


async def test_callers_see_their_own_statistics_and_admins_see_all(run: Running) -> None:
    await filled(run)
    mine, whole = await stats(run, A), await stats(run, OPS)
    assert (mine["entries"], whole["entries"]) == (2, 3) and 0 < mine["bytes"] < whole["bytes"]
    assert set(mine["entries_by_model"]) == {"demo:latest", "demo-rendered:latest"}
    assert "hits" not in mine, "users must not learn how often others call"
    assert (whole["hits"], whole["misses"]) == (0, 3)
    assert await chat(run, A, "alpha one") == "hit"
    whole = await stats(run, OPS)
    assert (whole["hits"], whole["hit_rate"], whole["saved_completion_tokens"] > 0) == (1, 0.25, True)
    assert whole["models"]["demo:latest"]["hits"] == 1 and whole["saved_seconds"] > 0


async def test_answers_name_the_worker_if_only_its_own_cache_was_affected(
    run: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WorkerInfo, "count", 3)
    monkeypatch.setattr(WorkerInfo, "index", 1)
    where = {"worker": 1, "workers": 3}
    alone = where if "memory:" in run.text else {}
    assert await post(run, A, "clear") == {"deleted": 0, **alone}
    assert (await post(run, A, "clear-expired")).keys() == {"deleted", *alone}
    told = {"matched": 0, "deleted": 0, "confirmed": False}
    assert await post(run, A, "invalidate", text="x") == {**told, **alone}
    assert (await stats(run, OPS)).items() >= where.items(), "statistics are always those of one worker"
    assert ("worker" in await stats(run, A)) == bool(alone)


async def test_callers_clear_their_own_entries_and_admins_all(run: Running) -> None:
    await filled(run)
    assert await post(run, A, "clear") == {"deleted": 2}
    assert [await chat(run, A, "alpha one"), await chat(run, B, "beta one")] == ["miss", "hit"]
    assert await post(run, OPS, "clear", caller="bob") == {"deleted": 1}
    assert await post(run, OPS, "clear") == {"deleted": 1}
    assert (await stats(run, OPS))["entries"] == 0
    response = await run.http.post(f"{run.url}/api/cache/clear", json={"caller": "bob"}, headers=A)
    assert (await error_of(response, 403))["code"] == "insufficient_permissions"


@pytest.mark.parametrize(
    ("asked", "matched"),
    [
        ({"model": "demo"}, 2),
        ({"model": "demo:latest"}, 2),
        ({"text": "ALPHA"}, 2),
        ({"text": "a*one"}, 2),
        ({"text": "one*a"}, 0),
        ({"text": "alpha", "model": "demo"}, 1),
        ({"caller": "alice"}, 2),
        ({"caller": "nobody"}, 0),
        ({"older_than": 0}, 3),
        ({"older_than": 3600}, 0),
        ({"key": "0" * 32}, 0),
    ],
)
async def test_invalidation_selects_entries_and_deletes_only_when_confirmed(
    run: Running, asked: dict[str, Any], matched: int
) -> None:
    await filled(run)
    await asyncio.sleep(0.01)
    assert await post(run, OPS, "invalidate", **asked) == {"matched": matched, "deleted": 0, "confirmed": False}
    told = await post(run, OPS, "invalidate", confirm=True, **asked)
    assert told == {"matched": matched, "deleted": matched, "confirmed": True}
    assert (await stats(run, OPS))["entries"] == 3 - matched


async def test_an_entry_can_be_invalidated_by_the_key_in_its_answer(run: Running) -> None:
    await filled(run)
    document = {"model": "demo", "messages": user("alpha one")}
    response = await run.http.post(f"{run.url}/v1/chat/completions", json=document, headers=A)
    key = response.headers["x-gemmapy-cache-key"]
    assert await post(run, B, "invalidate", key=key, confirm=True) == {"matched": 0, "deleted": 0, "confirmed": True}
    assert (await post(run, A, "invalidate", key=key, confirm=True))["deleted"] == 1
    assert await chat(run, A, "alpha one") == "miss"


async def test_more_entries_than_a_batch_are_all_removed(run: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugins.cache.api.BATCH", 2)
    monkeypatch.setattr("plugins.cache.caller_data.BATCH", 2)

    async def forget() -> int:
        response = await run.http.delete(f"{run.url}/api/me/data", headers=A)
        return int((await response.json())["deleted"]["cache"])

    async def invalidate() -> int:
        return int((await post(run, A, "invalidate", text="number", confirm=True))["deleted"])

    async def clear() -> int:
        return int((await post(run, A, "clear"))["deleted"])

    for remove in (forget, invalidate, clear):
        for number in range(5):
            assert await chat(run, A, f"number {number}") == "miss"
        assert await remove() == 5 and (await stats(run, A))["entries"] == 0, remove.__name__


async def test_expired_entries_are_cleared(run: Running) -> None:
    document = {"model": "demo", "messages": user("short")}
    headers = {**A, "x-gemmapy-cache-ttl": "0.05"}
    await (await run.http.post(f"{run.url}/v1/chat/completions", json=document, headers=headers)).read()
    await asyncio.sleep(0.1)
    assert (await post(run, OPS, "clear-expired"))["deleted"] in (0, 1), "some stores do it themselves"
    assert (await stats(run, OPS))["entries"] == 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"confirm": True}, None),
        ({"text": ""}, "text"),
        ({"text": "a*" * 5001}, "text"),
        ({"older_than": -1}, "older_than"),
        ({"confirm": "yes"}, "confirm"),
        ({"txet": "a"}, "txet"),
        ({"key": 1}, "key"),
    ],
)
async def test_an_invalid_field_is_named_in_the_error(run: Running, body: dict[str, Any], param: str | None) -> None:
    response = await run.http.post(f"{run.url}/api/cache/invalidate", json=body, headers=OPS)
    assert (await error_of(response, 400))["param"] == param


@pytest.mark.parametrize("pattern", ["*" * 10_000, "a*" * 5000, "a" * 9999 + "b", ("a" * 48 + "*") * 200])
def test_matching_a_pattern_does_not_block_other_calls(pattern: str) -> None:
    """Hundreds of entries are scanned before another call gets its turn."""
    words = ("a" * 49 + "c") * 1300
    began = time.process_time()
    for _ in range(10):
        contains(words, pattern)
    assert time.process_time() - began < 0.1


async def test_a_key_is_required(run: Running) -> None:
    for method, name in (("GET", "stats"), ("POST", "clear"), ("POST", "clear-expired"), ("POST", "invalidate")):
        for who in (NOBODY, {"Authorization": "Bearer wrong"}):
            response = await run.http.request(method, f"{run.url}/api/cache/{name}", headers=who)
            await error_of(response, 401)


async def test_embeddings_are_found_by_their_text(run: Running) -> None:
    body = {"model": "demo-embed", "input": ["the first", "the second"]}
    await (await run.http.post(f"{run.url}/v1/embeddings", json=body, headers=A)).read()
    assert (await post(run, A, "invalidate", text="second", confirm=True))["deleted"] == 1
    response = await run.http.post(f"{run.url}/v1/embeddings", json=body, headers=A)
    assert response.headers["x-gemmapy-cached-inputs"] == "1 of 2"


async def test_text_is_searched_in_messages_and_tool_arguments_only(start: Start) -> None:
    text = "plugins: {cache: {}}\nchains: {chat: [cache], embeddings: [cache]}\n"
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"name": "John Smith"}'}}
    answer = {"role": "tool", "tool_call_id": "c1", "content": "x"}
    messages = [*user("who?"), {"role": "assistant", "tool_calls": [call]}, answer]
    async with start(text) as run:
        await (await run.chat(messages=messages, reasoning_effort="low")).read()
        for words, matched in (("john smith", 1), ("who?", 1), ("assistant", 0), ("c1", 0), ("low", 0), ("find", 0)):
            assert (await post(run, NOBODY, "invalidate", text=words))["matched"] == matched, words
        await (await run.embed(input=["first " * 300, "second " * 300])).read()
        assert (await post(run, NOBODY, "invalidate", text="first"))["matched"] == 1


async def test_only_admins_clear_entries_shared_by_all_callers(start: Start) -> None:
    text = f"plugins: {{cache: {{share: global}}}}\nchains: {{chat: [cache]}}\n{KEYS}"
    async with start(text) as run:
        assert [await chat(run, who, "alpha") for who in (A, B)] == ["miss", "hit"]
        assert await post(run, A, "clear") == {"deleted": 0}
        response = await run.http.post(f"{run.url}/api/cache/clear", json={"caller": "bob"}, headers=OPS)
        assert (await error_of(response, 400))["param"] == "caller"
        assert await post(run, OPS, "clear") == {"deleted": 1}


async def test_the_key_in_an_answers_header_is_the_key_in_the_store(
    run: Running, caplog: pytest.LogCaptureFixture
) -> None:
    asking = [
        ("chat/completions", {"model": "demo", "messages": user("hi")}),
        ("embeddings", {"model": "demo-embed", "input": "hi"}),
        ("embeddings", {"model": "demo-embed", "input": ["hi", "hi"], "dimensions": 8}),
    ]
    for path, body in asking:
        told = [await run.http.post(f"{run.url}/v1/{path}", json=body, headers=A) for _ in range(2)]
        keys = {answer.headers["x-gemmapy-cache-key"] for answer in told}
        assert [answer.headers["x-gemmapy-cache"] for answer in told] == ["miss", "hit"] and len(keys) == 1
        assert (await post(run, A, "invalidate", key=keys.pop(), confirm=True))["deleted"] == 1
    several = {"model": "demo-embed", "input": ["a", "b"]}
    with caplog.at_level(logging.INFO, "gemmapy.requests"):
        response = await run.http.post(f"{run.url}/v1/embeddings", json=several, headers=A)
    assert response.status == 200 and "x-gemmapy-cache-key" not in response.headers
    [told] = [record.told for record in caplog.records if hasattr(record, "told")]
    assert told["cache"] == "miss" and "cache-key" not in told


async def test_statistics_list_only_models_that_answered(start: Start) -> None:
    text = "plugins: {cache: {sampled: skip}}\nchains: {chat: [cache]}\nmodels: {other: {alias: demo}}\n"
    async with start(text) as run:
        for model in ("nobody", "demo", "other"):
            await run.chat(model=model)
        told = await stats(run, NOBODY)
    assert told["bypassed"] == 2 and list(told["models"]) == ["demo:latest"]


async def test_scanning_many_entries_does_not_block_other_tasks() -> None:
    async def written() -> None: ...

    async def turning() -> None:
        for turns[0] in itertools.count():
            await asyncio.sleep(0)

    store, turns = Memory(10_000_000, Clock()), [0]
    await store.set([NewValue(f"cache:{number}", b"", 60) for number in range(10 * PAUSE)])
    turner = asyncio.ensure_future(turning())
    await asyncio.sleep(0)
    told = await Api(store, Stats(), None, False, written, Invalidations(Clock()).add, dict).kept("cache:")  # type: ignore[arg-type]  # nothing calls it
    turner.cancel()
    assert told["entries"] == 10 * PAUSE and turns[0] >= 10
