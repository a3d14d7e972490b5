"""The simulator refuses what Ollama refuses, word for word."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.upstreams.demo import Model, Simulator

from .asking import WEATHER, Client, asking, user

PIXEL = "iVBORw0KGgo="


@pytest.fixture
def simulator() -> Simulator:
    return Simulator()


@pytest.fixture
async def client(simulator: Simulator) -> AsyncIterator[Client]:
    async with asking(simulator) as client:
        yield client


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"model": ""}, 400, "model is required"),
    ({"model": "a b"}, 400, "invalid model name"),
    ({"model": "No-Such"}, 404, "model 'No-Such' not found"),
    ({"model": "x:cloud"}, 403, "ollama cloud is disabled: remote model is unavailable"),
    ({"model": "x:7b-cloud"}, 403, "ollama cloud is disabled: remote model is unavailable"),
    ({"model": "x:cloud:local"}, 400, 'use either :local or :cloud, not both: "x:cloud:local"'),
    ({"top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
    ({"keep_alive": "10"}, 400, 'time: missing unit in duration "10"'),
    ({"keep_alive": "1d"}, 400, 'time: unknown unit "d" in duration "1d"'),
    ({"keep_alive": "x"}, 400, 'time: invalid duration "x"'),
    ({"keep_alive": True}, 400, "Unsupported type: 'bool'"),
    ({"think": True}, 400, '"demo" does not support thinking'),
    (
        {"think": "huge"},
        400,
        'invalid think value: "huge" (must be "high", "medium", "low", "max", true, or false)',
    ),
    ({"model": "demo-embed"}, 400, '"demo-embed" does not support chat'),
    (
        {"model": "mute", "tools": [WEATHER]},
        400,
        "registry.ollama.ai/library/mute:latest does not support tools",
    ),
    ({"options": {"temperature": "hot"}}, 500, 'option "temperature" must be of type float32'),
    ({"options": {"num_predict": 1.5}}, 500, 'option "num_predict" must be of type integer'),
    ({"options": {"use_mmap": 1}}, 500, 'option "use_mmap" must be of type boolean'),
    ({"options": {"stop": "x"}}, 500, 'option "stop" must be of type array'),
    ({"options": {"stop": [1]}}, 500, 'option "stop" must be of an array of strings'),
    (
        {"stream": "no"},
        400,
        "json: cannot unmarshal string into Go struct field ChatRequest.stream of type bool",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
        400,
        "json: cannot unmarshal array into Go struct field .messages.content of type string",
    ),
    (
        {"messages": user("Hi", images=["data:image/png;base64,AAAA"])},
        400,
        "illegal base64 data at input byte 4",
    ),
    (
        {"model": "demo-rendered", "messages": user("Hi", images=[PIXEL])},
        500,
        "Multimodal data provided, but model does not support multimodal requests.",
    ),
]


@pytest.mark.parametrize(("body", "status", "text"), BAD, ids=lambda value: str(value)[:40])
async def test_refusals_have_the_words_of_ollama(body: dict[str, Any], status: int, text: str) -> None:
    simulator = Simulator(models=[*Simulator().models, Model("mute:latest", frozenset({"completion"}))])
    async with asking(simulator) as client:
        sent = {"model": "demo", "messages": user("Hi"), **body}
        assert await client.error("/api/chat", **sent) == (status, text)


NATIVE: list[tuple[dict[str, Any], int, str]] = [
    ({"messages": user("Hi", images=[PIXEL])}, 500, "image input is not supported"),
    ({"tools": [{"function": {"name": "f"}}]}, 400, "properties must be an object"),
    ({"tools": [WEATHER], "logprobs": True}, 400, "logprobs is not supported with tools + stream"),
    ({"messages": [*user("Hi"), *2 * [{"role": "assistant"}]]}, 400, "2 or more assistant messages"),
    ({"format": {"$ref": "http://example.com"}}, 400, "Unable to generate parser"),
]


@pytest.mark.parametrize(("body", "status", "text"), NATIVE, ids=lambda value: str(value)[:40])
async def test_refusals_of_the_runner_are_json_in_a_string(
    client: Client, body: dict[str, Any], status: int, text: str
) -> None:
    found, error = await client.error("/api/chat", **{"model": "demo", "messages": user("Hi"), **body})
    inner = json.loads(error)["error"]
    assert (found, inner["code"]) == (status, status)
    assert text in inner["message"]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", "missing request body"),
        (b"x", "invalid character 'x' looking for beginning of value"),
        (b'{"model": "demo"', "unexpected EOF"),
        (b'{"model" 1}', "invalid character '1' after object key"),
        (b"[]", "json: cannot unmarshal array into Go value of type api.ChatRequest"),
        (
            b'{"messages": [{"tool_calls": [{"function": {"arguments": "{}"}}]}]}',
            "json: cannot unmarshal string",
        ),
    ],
)
async def test_bodies_are_read_as_strictly_as_go_reads_them(client: Client, raw: bytes, text: str) -> None:
    async with client.send("/api/chat", data=raw) as reply:
        assert reply.status == 400
        assert (await reply.json())["error"].startswith(text)


async def test_names_of_fields_in_any_case_and_trailing_data_are_taken(client: Client) -> None:
    raw = b'{"Model": "demo", "STREAM": false, "messages": [{"Role": "user", "Content": "Hi"}], "x": 1} rubbish'
    async with client.send("/api/chat", data=raw) as reply:
        assert '"Hi"' in (await reply.json())["message"]["content"]


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"model": ""}, 404, "model '' not found"),
        ({"model": "nope"}, 404, "model 'nope' not found"),
        ({"raw": True, "system": "x"}, 400, "raw mode does not support template, system, or context"),
        (
            {"model": "demo-rendered", "suffix": "x"},
            400,
            "registry.ollama.ai/library/demo-rendered:latest does not support insert",
        ),
        ({"model": "demo-embed"}, 400, '"demo-embed" does not support generate'),
    ],
)
async def test_generate_refuses_in_its_own_words(client: Client, body: dict[str, Any], status: int, text: str) -> None:
    assert await client.error("/api/generate", **{"model": "demo", "prompt": "Hi", **body}) == (status, text)


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"model": "nope"}, 404, 'model "nope" not found, try pulling it first'),
        ({"model": ""}, 404, "model '' not found"),
        ({"input": [1, 2]}, 400, "invalid input type"),
        ({"input": {"a": 1}}, 400, "invalid input type"),
        ({"model": "demo"}, 501, "This server does not support embeddings. Start it with `--embeddings`"),
        ({"input": "word " * 3000, "truncate": False}, 400, "the input length exceeds the context length"),
    ],
)
async def test_embed_refuses_in_its_own_words(client: Client, body: dict[str, Any], status: int, text: str) -> None:
    assert await client.error("/api/embed", **{"model": "demo-embed", "input": "Hi", **body}) == (
        status,
        text,
    )
