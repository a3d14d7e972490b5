"""`/api/ollama/generate`: one prompt, with a chat's parameters, answered in the shape of Ollama's generate."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from proxy.upstreams.demo import Fault, Simulator
from tests.conftest import Running, Start
from tests.whole.asking import error_of

PATH = "/api/ollama/generate"
CACHE = "plugins: {cache: {}}\nchains: {chat: [cache]}\n"
ASK: dict[str, Any] = {"model": "demo", "prompt": "Why is the sky blue?", "system": "Be brief."}


async def generated(run: Running, **more: Any) -> dict[str, Any]:
    async with run.http.post(f"{run.url}{PATH}", json={**ASK, **more}) as reply:
        assert reply.status == 200, await reply.text()
        told: dict[str, Any] = await reply.json()
        return told


async def test_a_repeated_prompt_is_answered_from_the_cache(start: Start) -> None:
    async with start(CACHE) as run:
        first = await generated(run, temperature=0.3, max_tokens=50)
        again = await generated(run, temperature=0.3, max_tokens=50)
        anew = await generated(run, temperature=0.3, max_tokens=50, use_cache=False)
        bodies = [one.body for one in run.ollama.seen if one.path == "/api/chat" and one.body["messages"]]
    assert first["response"] and first["done"] and first["done_reason"] == "stop" and first["eval_count"]
    assert (first["cached"], again["cached"], anew["cached"]) == (False, True, False)
    assert first["response"] == again["response"] and first["cache_key"] == again["cache_key"] is not None
    assert anew["cache_key"] is None
    assert [message["role"] for message in bodies[0]["messages"]] == ["system", "user"]
    assert bodies[0]["options"]["temperature"] == 0.3 and len(bodies) == 2


async def test_the_last_line_of_a_stream_says_whether_the_answer_was_cached(start: Start) -> None:
    async with start(CACHE) as run:
        for cached in (False, True):
            async with run.http.post(f"{run.url}{PATH}", json={**ASK, "stream": True}) as reply:
                lines = [orjson.loads(line) for line in (await reply.read()).splitlines()]
            assert len(lines) > 2 and all(not line["done"] for line in lines[:-1])
            assert lines[-1]["done"] and lines[-1]["cached"] is cached
        assert "".join(line["response"] for line in lines) == (await generated(run))["response"]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"model": "demo"}, "prompt", "missing_required_parameter"),
        ({"model": "demo", "prompt": ""}, "prompt", "empty_string"),
        ({"model": "demo", "prompt": ["a"]}, "prompt", "invalid_type"),
        ({"prompt": "a"}, "model", "missing_required_parameter"),
        ({**ASK, "system": 3}, "system", "invalid_type"),
        ({**ASK, "messages": []}, "messages", "unknown_parameter"),
        ({**ASK, "n": 2}, "n", "unknown_parameter"),
        ({**ASK, "temperature": 9}, "temperature", "above_maximum_value"),
        ({**ASK, "prompt": "x" * 70_000}, "prompt", "context_length_exceeded"),
        ([], "the body", "invalid_type"),
    ],
)
async def test_an_invalid_field_is_named_in_the_error(start: Start, body: Any, param: str, code: str) -> None:
    async with start() as run, run.http.post(f"{run.url}{PATH}", json=body) as reply:
        error = await error_of(reply, 400)
    assert (error["param"], error["code"]) == (param, code)


async def test_a_stream_that_breaks_off_ends_with_an_error(start: Start) -> None:
    ollama = Simulator(faults=[Fault("eof", after=2)])
    async with start(ollama=ollama) as run, run.http.post(f"{run.url}{PATH}", json={**ASK, "stream": True}) as reply:
        last = orjson.loads((await reply.read()).splitlines()[-1])
    assert last["error"]["code"] == "upstream_cut" and "done" not in last
