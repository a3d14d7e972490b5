"""Functions in namespaces, as coding agents send them for MCP servers and for agents of their own."""

from __future__ import annotations

import pytest

from proxy.upstreams.demo import Said, Simulator
from tests.conftest import Start
from tests.whole.asking import Json, asked, error_of, whole
from tests.whole.responding import checked, events_of, final_response

FUNCTION: Json = {"type": "function", "name": "find", "description": "Finds.", "parameters": {"type": "object"}}
SPACES: list[Json] = [
    {"type": "namespace", "name": "mcp__books", "description": "Books.", "tools": [FUNCTION]},
    {"type": "namespace", "name": "mcp__films", "description": "Films.", "tools": [FUNCTION]},
    FUNCTION,
]
FOUND: Json = {"type": "function_call_output", "call_id": "c1", "output": "none"}


@pytest.mark.parametrize("streams", [True, False])
async def test_functions_with_one_name_in_two_namespaces_stay_distinct(start: Start, streams: bool) -> None:
    calls: tuple[tuple[str, Json], ...] = (("mcp__books__find", {}), ("mcp__films__find", {}), ("find", {}))
    async with start(ollama=Simulator(say=lambda _: Said("", tool_calls=calls))) as run:
        body = {"model": "demo", "input": "hi", "tools": SPACES, "stream": streams}
        response = await run.http.post(f"{run.url}/v1/responses", json=body)
        end = final_response(await events_of(response)) if streams else checked(await whole(response))
        (sent,) = asked(run.ollama)
    assert [one["function"]["name"] for one in sent["tools"]] == [name for name, _ in calls]
    assert [(one.get("namespace"), one["name"]) for one in end["output"]] == [
        ("mcp__books", "find"), ("mcp__films", "find"), (None, "find")
    ]  # fmt: skip
    assert [one["name"] for one in end["tools"]] == ["mcp__books", "mcp__films", "find"]
    assert response.headers["x-gemmapy-params"] == "tools.description=ignored"


async def test_earlier_calls_reach_the_model_with_qualified_names(start: Start) -> None:
    call = {"type": "function_call", "call_id": "c1", "namespace": "mcp__books", "name": "find", "arguments": "{}"}
    async with start() as run:
        body = {"model": "demo", "input": [{"role": "user", "content": "hi"}, call, FOUND], "tools": SPACES}
        await whole(await run.http.post(f"{run.url}/v1/responses", json=body))
        (sent,) = asked(run.ollama)
    assert sent["messages"][1]["tool_calls"][0]["function"]["name"] == "mcp__books__find"


@pytest.mark.parametrize(
    ("space", "param", "code"),
    [
        ({"tools": [FUNCTION]}, "tools[0].name", "missing_required_parameter"),
        ({"name": "a"}, "tools[0].tools", "missing_required_parameter"),
        ({"name": "a", "tools": [{"type": "custom", "name": "b"}]}, "tools[0].tools[0].type", "unsupported_tool"),
        ({"name": "a", "tools": [FUNCTION, {**FUNCTION, "strict": True}]}, "tools[0].tools[1].name", "duplicate_tool"),
    ],
)
async def test_an_invalid_field_in_a_namespace_is_named(start: Start, space: Json, param: str, code: str) -> None:
    async with start() as run:
        body = {"model": "demo", "input": "hi", "tools": [{"type": "namespace", **space}]}
        error = await error_of(await run.http.post(f"{run.url}/v1/responses", json=body), 400)
    assert (error["param"], error["code"]) == (param, code)
