"""The simulator's endpoints about models, and what stands at its door."""

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.upstreams.demo import CATALOGUE, Model, Simulator, simulate

from .asking import Client, asking, user


@pytest.fixture
def simulator() -> Simulator:
    return Simulator()


@pytest.fixture
async def client(simulator: Simulator) -> AsyncIterator[Client]:
    async with asking(simulator) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/", 200, "Ollama is running"),
        ("HEAD", "/", 200, ""),
        ("HEAD", "/api/tags", 200, ""),
        ("GET", "/nowhere", 404, "404 page not found"),
        ("GET", "/api/chat", 405, "405 method not allowed"),
        ("POST", "/api/tags", 405, "405 method not allowed"),
    ],
)
async def test_paths_and_methods_are_exact(client: Client, method: str, path: str, status: int, text: str) -> None:
    async with client.send(path, method) as reply:
        assert (reply.status, await reply.text()) == (status, text)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:11434"}, 403),
        ({"Host": "8.8.8.8"}, 403),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "box.local"}, 200),
        ({"Host": "192.168.1.2"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://localhost:3000"}, 200),
    ],
)
async def test_only_local_names_are_let_in(client: Client, headers: dict[str, str], status: int) -> None:
    async with client.send("/api/version", "GET", headers=headers) as reply:
        assert reply.status == status
        assert bool(await reply.read()) == (status == 200)


async def test_tags_describe_every_model(client: Client) -> None:
    models = (await client.get("/api/tags"))["models"]
    assert {model["name"] for model in models} == {model.name for model in CATALOGUE}
    assert all(len(model["digest"]) == 64 and model["details"]["format"] == "gguf" for model in models)
    embedding = next(model for model in models if model["name"] == "demo-embed:latest")
    assert embedding["capabilities"] == ["embedding"] and embedding["details"]["embedding_length"] == 384


async def test_show_tells_context_and_capabilities(client: Client) -> None:
    _, shown = await client.ask("/api/show", model="demo")
    assert shown["model_info"]["llama.context_length"] == 8192
    assert shown["capabilities"] == ["completion", "tools", "insert"]
    assert await client.error("/api/show", model="nope") == (404, "model 'nope:latest' not found")
    assert await client.error("/api/show") == (400, "model is required")
    assert await client.error("/api/show", model="a b") == (400, "invalid model name")


async def test_version_and_status_can_be_read(client: Client) -> None:
    assert await client.get("/api/version") == {"version": "0.33.0"}
    assert (await client.get("/api/status"))["cloud"]["disabled"] is True


async def test_a_copy_answers_and_a_deleted_model_does_not(client: Client) -> None:
    async with client.send("/api/copy", json={"source": "demo", "destination": "me/twin:v1"}) as reply:
        assert (reply.status, await reply.read()) == (200, b"")
    assert (await client.ask("/api/chat", model="me/twin:v1", messages=user("Hi")))[0] == 200
    async with client.send("/api/delete", "DELETE", json={"model": "me/twin:v1"}) as reply:
        assert (reply.status, await reply.read()) == (200, b"")
    assert (await client.ask("/api/chat", model="me/twin:v1", messages=user("Hi")))[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "error"),
    [
        ("DELETE", "/api/delete", {"model": "nope"}, (404, "model 'nope' not found")),
        ("DELETE", "/api/delete", {"model": "a b"}, (400, 'name "a b" is invalid')),
        ("POST", "/api/copy", {"source": "nope", "destination": "x"}, (404, 'model "nope" not found')),
        ("POST", "/api/copy", {"source": "a b", "destination": "x"}, (400, 'source "a b" is invalid')),
        ("POST", "/api/copy", {"source": "demo", "destination": ""}, (400, 'destination "" is invalid')),
        ("POST", "/api/create", {"model": "x"}, (400, "neither 'from' or 'files' was specified")),
        (
            "POST",
            "/api/pull",
            {"model": "x", "stream": False},
            (500, "pull model manifest: file does not exist"),
        ),
    ],
)
async def test_writing_refuses_in_its_own_words(
    client: Client, method: str, path: str, body: dict[str, Any], error: tuple[int, str]
) -> None:
    async with client.send(path, method, json=body) as reply:
        assert (reply.status, (await reply.json())["error"]) == error


async def test_pulling_tells_how_far_it_is_and_fails_on_a_line(client: Client) -> None:
    lines = await client.lines("/api/pull", model="demo")
    assert [line["status"] for line in lines][::5] == ["pulling manifest", "success"]
    assert any(line.get("completed") == line.get("total") != 0 for line in lines)
    failed = await client.lines("/api/pull", model="no-such")
    assert failed[-1] == {"error": "pull model manifest: file does not exist"}


async def test_a_created_model_has_its_own_system_and_parameters(client: Client) -> None:
    made = {"model": "mine", "from": "demo", "system": "Be kind.", "parameters": {"num_predict": 3}}
    assert (await client.lines("/api/create", **made))[-1] == {"status": "success"}
    _, shown = await client.ask("/api/show", model="mine")
    assert shown["system"] == "Be kind." and shown["parameters"] == f"{'num_predict':<30} 3"
    _, document = await client.ask("/api/chat", model="mine", messages=user("Hi"))
    assert (document["eval_count"], document["done_reason"]) == (3, "length")


async def test_a_blob_is_known_once_its_digest_is_right(client: Client) -> None:
    path = f"/api/blobs/sha256:{hashlib.sha256(b'weights').hexdigest()}"
    statuses = []
    for method, data in (
        ("HEAD", None),
        ("POST", b"other"),
        ("POST", b"weights"),
        ("POST", b"weights"),
        ("HEAD", None),
    ):
        async with client.send(path, method, data=data) as reply:
            statuses.append(reply.status)
    assert statuses == [404, 400, 201, 200, 200]
    async with client.send("/api/blobs/sha256:12", "HEAD") as reply:
        assert reply.status == 400


async def uploaded(client: Client, blob: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    async with client.send(f"/api/blobs/{digest}", data=blob) as reply:
        assert reply.status == 201
    return digest


async def test_models_are_made_with_an_adapter_or_of_a_file(client: Client) -> None:
    digest = await uploaded(client, b"GGUF adapter")
    lines = await client.lines("/api/create", model="tuned", **{"from": "demo"}, adapters={"a.gguf": digest})
    assert lines[0] == {"status": "parsing GGUF"} and lines[-1] == {"status": "success"}
    assert {"status": f"using existing layer {digest}"} in lines
    assert (await client.lines("/api/create", model="whole", files={"m.gguf": digest}))[-1] == {"status": "success"}
    _, tags = await client.raw("/api/show", model="tuned")
    assert b'"parent_model":"demo:latest"' in tags.replace(b" ", b"")
    for model in ("tuned", "whole"):
        assert (await client.ask("/api/chat", model=model, messages=user("Hi")))[0] == 200


async def test_adapters_and_files_that_are_none(client: Client) -> None:
    digest, other = await uploaded(client, b"GGUF adapter"), await uploaded(client, b"safetensors")
    unknown = f"sha256:{'0' * 64}"
    base = {"model": "tuned", "from": "demo"}
    for body, said in (
        ({**base, "adapters": {"a.gguf": digest, "b.gguf": digest}}, "only one adapter is currently supported"),
        ({**base, "adapters": {"a.gguf": other}}, "supplied file was not in GGUF format"),
        ({**base, "adapters": {"a.bin": other}}, "unknown type"),
        ({**base, "adapters": {"../a.gguf": digest}}, "file path must be relative"),
        ({**base, "adapters": {"/a.gguf": digest}}, "file path must be relative"),
        ({**base, "adapters": {"a.gguf": unknown}}, "no such file or directory"),
        ({**base, "model": "", "adapters": {"a.gguf": unknown}}, "invalid model name"),
        ({"model": "m", "files": {}}, "no files provided to convert"),
        ({"model": "m"}, "neither 'from' or 'files' was specified"),
    ):
        status, error = await client.error("/api/create", **body)
        assert status == 400 and said in error, body


async def test_newer_servers_make_no_models_with_adapters() -> None:
    async with asking(Simulator(version="0.34.1-rc0")) as client:
        digest = await uploaded(client, b"GGUF adapter")
        adapters = {"from": "demo", "adapters": {"a.gguf": digest}}
        assert await client.error("/api/create", model="", **adapters) == (400, "LoRA adapters are no longer supported")
        assert (await client.lines("/api/create", model="m", files={"m.gguf": digest}))[-1] == {"status": "success"}


async def test_what_was_received_is_remembered(simulator: Simulator, client: Client) -> None:
    await client.ask("/api/chat", model="demo", messages=user("Hi"))
    async with client.send("/api/chat", data=b"rubbish", headers={"X-Mark": "1"}):
        pass
    good, bad = simulator.seen
    assert good.body["messages"] == user("Hi") and good.path == "/api/chat"
    assert bad.body is None and bad.headers["x-mark"] == "1"
    assert simulator.calls == {"/api/chat": 2}


def test_a_digest_is_made_from_the_name() -> None:
    assert Model("a:b", frozenset()).digest == hashlib.sha256(b"a:b").hexdigest()
    assert Model("a:b", frozenset(), digest="0" * 64).digest == "0" * 64


async def test_the_command_says_where_it_listens_and_ends_on_a_signal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(simulate("127.0.0.1", 0))
        out = ""
        while "http://127.0.0.1:" not in out:
            await asyncio.sleep(0.001)
            out += capsys.readouterr().out
        os.kill(os.getpid(), signal.SIGTERM)
    assert out.startswith("A simulated Ollama listens on") and out.count("\n") == 1
