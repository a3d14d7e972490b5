from __future__ import annotations

import asyncio

import pytest

from proxy.upstreams.demo import CATALOGUE, Fault, Model, Simulator
from tests.conftest import Start


def paths(ollama: Simulator, path: str) -> int:
    return sum(1 for one in ollama.seen if one.path == path)


async def test_many_calls_ask_for_the_list_once(start: Start) -> None:
    async with start() as run:
        await asyncio.gather(*(run.chat() for _ in range(20)))
        assert paths(run.ollama, "/api/tags") == 1
        assert paths(run.ollama, "/api/ps") == 2, "before the model was loaded, and after"


async def test_a_cold_model_is_loaded_once_for_all_who_wait(start: Start) -> None:
    async with start(ollama=Simulator(load_time=0.1)) as run:
        answers = await asyncio.gather(*(run.chat() for _ in range(10)))
        assert {answer.status for answer in answers} == {200}
        loading = [one for one in run.ollama.seen if one.path == "/api/chat" and not one.body["messages"]]
        assert len(loading) == 1
        assert (run.ollama.loads, run.ollama.reloads) == (1, 0)


async def test_a_load_that_fails_is_told_to_all_and_tried_again_by_the_next(start: Start) -> None:
    ollama = Simulator(faults=[Fault("load_failure", path="/api/chat")])
    async with start(ollama=ollama) as run:
        failed = await run.chat()
        assert (failed.status, (await failed.json())["error"]["code"]) == (502, "upstream_load")
        assert (await run.chat()).status == 200


async def test_a_load_that_never_ends_is_given_up(start: Start) -> None:
    text = "upstreams: {local: {ollama: $OLLAMA, load_timeout: 0.1}}\nchains: {chat: []}\n"
    async with start(text, Simulator(load_time=30)) as run:
        failed = await run.chat()
        assert (failed.status, (await failed.json())["error"]["code"]) == (502, "upstream_load")


async def test_what_is_told_one_of_those_who_waited_for_a_load_is_not_told_the_others(start: Start) -> None:
    text = (
        "upstreams: {local: {ollama: $OLLAMA, load_timeout: 0.3}}\nkeys: {alice: a-key, bob: b-key}\n"
        "plugins: {limits: {limits: [{match: {caller: alice}, requests_per_minute: 7}]}}\nchains: {chat: [limits]}\n"
    )
    async with start(text, Simulator(load_time=30)) as run:
        ask = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
        alice, bob = [
            run.http.post(f"{run.url}/v1/chat/completions", json=ask, headers={"Authorization": f"Bearer {key}"})
            for key in ("a-key", "b-key")
        ]
        limited, free = await asyncio.gather(alice, bob)
    assert limited.status == free.status == 502 and paths(run.ollama, "/api/chat") == 1
    assert limited.headers["x-ratelimit-limit-requests"] == "7" and "x-ratelimit-limit-requests" not in free.headers


async def test_an_embedding_model_is_loaded_by_an_empty_embedding(start: Start) -> None:
    async with start() as run:
        assert (await run.embed()).status == 200
        assert [one.body["input"] for one in run.ollama.seen if one.path == "/api/embed"] == [[], ["hi"]]
        assert paths(run.ollama, "/api/chat") == 0


async def test_an_older_server_is_asked_for_capabilities_once(start: Start) -> None:
    async with start(ollama=Simulator(profile="old")) as run:
        for _ in range(3):
            assert (await run.embed(model="demo")).status == 400
        assert paths(run.ollama, "/api/show") == 1
        assert paths(run.ollama, "/api/embed") == 0


async def test_a_model_that_was_just_pulled_is_found(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.upstreams.model_list.ABSENCE_BELIEVED", 0.0)
    ollama = Simulator(models=[one for one in CATALOGUE if one.name != "demo-vision:latest"])
    async with start(ollama=ollama) as run:
        assert (await run.chat(model="demo-vision")).status == 404
        address = run.server.config.upstreams["local"].urls[0]
        pulled = await run.http.post(f"{address}/api/pull", json={"model": "demo-vision", "stream": False})
        assert pulled.status == 200
        assert (await run.chat(model="demo-vision")).status == 200


async def test_a_name_in_any_spelling_is_the_same_model_with_the_same_pins(start: Start) -> None:
    text = "models: {'demo:latest': {num_ctx: 512}}\nchains: {chat: []}\n"
    async with start(text) as run:
        for name in ("demo", "DEMO", "demo:latest", "library/demo"):
            assert (await run.chat(model=name)).status == 200
        assert {one.body["options"]["num_ctx"] for one in run.ollama.seen if one.path == "/api/chat"} == {512}
        assert run.ollama.reloads == 0


async def test_the_first_upstream_that_lists_a_model_answers_even_when_another_is_away(start: Start) -> None:
    text = "upstreams: {gone: {ollama: 'http://127.0.0.1:9'}, here: {ollama: $OLLAMA}}\nchains: {chat: []}\n"
    async with start(text, Simulator(models=[Model("only", frozenset({"completion"}))])) as run:
        answer = await run.chat(model="only")
        assert (answer.status, answer.headers["x-gemmapy-upstream"]) == (200, "here")
        listed = await (await run.http.get(f"{run.url}/v1/models")).json()
        assert [one["id"] for one in listed["data"]] == ["only:latest"]
        ready = await run.http.get(f"{run.url}/readyz")
        assert (await ready.json())["upstreams"] == {"gone": "unreachable", "here": "ok"}


async def test_an_empty_list_is_a_list(start: Start) -> None:
    async with start(ollama=Simulator(models=[])) as run:
        assert (await (await run.http.get(f"{run.url}/v1/models")).json())["data"] == []
