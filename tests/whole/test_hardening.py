"""What a hostile caller, a careless operator or a clumsy plugin must not be able to do."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from proxy.edge.http import HttpServer
from proxy.errors import ConfigError, UpstreamError
from proxy.live import Router
from proxy.types import Route
from proxy.upstreams.demo import Said, Simulator
from proxy.upstreams.repair import SchemaValidator
from tests.conftest import ASK, BARE, Start
from tests.whole.asking import PNG, data_url, error_of


def chain_of(links: int, keyword: str) -> dict[str, Any]:
    """A schema in which every definition refers twice to the next."""
    definitions: dict[str, Any] = {"d0": {"type": "object"}}
    for index in range(1, links):
        definitions[f"d{index}"] = {keyword: [{"$ref": f"#/$defs/d{index - 1}"}] * 2}
    return {"type": "object", "properties": {}, "allOf": [{"$ref": f"#/$defs/d{links - 1}"}], "$defs": definitions}


def shaped(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}


def tool(parameters: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return {"type": "function", "function": {"name": f"f{index}", "parameters": parameters}}


@pytest.mark.parametrize("links", [30, 60])
async def test_a_schema_with_exponential_cost_is_refused(start: Start, links: int) -> None:
    async with start() as run, asyncio.timeout(10):
        error = await error_of(await run.chat(response_format=shaped(chain_of(links, "allOf"))), 400)
        assert error["code"] == "invalid_schema"
        forced = await run.chat(tools=[tool(chain_of(links, "anyOf"))], tool_choice="required")
        assert (await error_of(forced, 400))["code"] == "invalid_schema"


async def test_validating_a_deep_answer_against_a_recursive_schema_is_bounded(start: Start) -> None:
    loops = {"allOf": [{"items": {"$ref": "#"}}, {"items": {"$ref": "#"}}]}
    deep = Simulator(say=lambda body: Said("[" * 40 + "]" * 40))
    async with start(ollama=deep) as run, asyncio.timeout(10):
        error = await error_of(await run.chat(response_format=shaped(loops)), 502)
        assert "too deep" in error["message"]


async def test_an_ordinary_recursive_schema_is_accepted(start: Start) -> None:
    tree = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}
    async with start() as run:
        assert (await run.chat(response_format=shaped(tree))).status == 200


def test_backtracking_of_a_regular_expression_is_bounded() -> None:
    ordinary = SchemaValidator({"pattern": r"^(?=.*\d)(?=.*[a-z])(?!.*secret).{8,}$"}, "p")
    ordinary.check("a1" * 10_000, "it")
    with pytest.raises(UpstreamError, match="does not fit"):
        ordinary.check("a1 secret", "it")
    with pytest.raises(UpstreamError, match="backtracking"):
        SchemaValidator({"pattern": r"(\w+) \1"}, "p").check("ab cd " * 2000 + "x x", "it")


async def test_a_schema_whose_inlined_references_grow_without_bound_is_refused(start: Start) -> None:
    definitions: dict[str, Any] = {"d0": {"not": {"type": "null"}}}
    for index in range(1, 40):
        definitions[f"d{index}"] = {"not": {"$ref": f"#/$defs/d{index - 1}"}}
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/d39"}}, "$defs": definitions}
    async with start() as run, asyncio.timeout(10):
        error = await error_of(await run.chat(tools=[tool(schema)]), 400)
        assert error["code"] == "invalid_schema" and not run.ollama.calls["/api/chat"]


async def test_large_images_reach_ollama_uncut(start: Start) -> None:
    picture = data_url(PNG + bytes(900_000))
    async with start() as run:
        message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": picture}}] * 2}
        body = io.BytesIO(json.dumps({"model": "demo-vision", "messages": [message]}).encode())
        answer = await run.http.post(
            f"{run.url}/v1/chat/completions", data=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status == 200, await answer.text()
        (asked,) = (one.body for one in run.ollama.seen if one.path == "/api/chat" and one.body["messages"])
        assert [len(image) for image in asked["messages"][0]["images"]] == [len(picture.partition(",")[2])] * 2


async def test_the_number_and_size_of_tools_are_limited(start: Start) -> None:
    async with start() as run:
        error = await error_of(await run.chat(tools=[tool({}, index) for index in range(129)]), 400)
        assert (error["param"], error["code"]) == ("tools", "array_above_max_length")
        big = {"type": "object", "properties": {f"p{n}": {"$ref": "#/$defs/d"} for n in range(400)}}
        big["$defs"] = {"d": {"type": "string", "description": "x" * 400}}
        many = await run.chat(tools=[tool(big, index) for index in range(10)])
        assert (await error_of(many, 400))["code"] == "invalid_schema"


async def test_after_a_reload_the_host_check_uses_the_address_really_listened_on(start: Start) -> None:
    async with start() as run:
        run.configure("listen: {host: 0.0.0.0, port: 0, drain: 1}\n" + BARE)
        assert await run.server.reload()
        evil = await run.http.get(f"{run.url}/v1/models", headers={"Host": "evil.example"})
        assert evil.status == 403


@pytest.mark.parametrize(
    "text",
    [
        "chains: {chat: []}\nparams: \x01\n",
        "listen: 2024-99-99\nchains: {}\n",
        "? [a]\n: b\nchains: {}\n",
        "{a: b}: c\nchains: {}\n",
        "a: &a [*a]\nchains: {}\n",
        "plugins: {x: {use: 5}}\nchains: {chat: [x]}\n",
        "plugins: {x: {use: ':X'}}\nchains: {chat: [x]}\n",
        "plugins: {x: {use: 'broken_plugin:X'}}\nchains: {chat: [x]}\n",
        "plugins: {x: {use: 'raising_plugin:X'}}\nchains: {chat: [x]}\n",
    ],
)
async def test_a_reload_survives_any_broken_file(
    start: Start, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_plugin.py").write_text("def (\n")
    (tmp_path / "raising_plugin.py").write_text(
        "from proxy.config import Strict\n\n\nclass X:\n    class Settings(Strict):\n        pass\n\n"
        "    def __init__(self, settings, host):\n        raise OSError('no disk')\n\n"
        "    async def __call__(self, call, call_next):\n        pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    async with start() as run:
        run.configure(text)
        assert not await run.server.reload()
        assert (await run.chat()).status == 200


async def handle(request: object) -> None:
    """A handler for routes that are looked up and never called."""


async def test_each_route_keeps_its_own_role() -> None:
    from aiohttp.test_utils import make_mocked_request

    routes = [Route("POST", "/admin/{x}", handle, "admin"), Route("GET", "/open/{x}", handle, "public")]  # type: ignore[arg-type]
    router = Router(routes)
    assert (await router.find(make_mocked_request("POST", "/admin/1")))[0].who == "admin"
    assert (await router.find(make_mocked_request("GET", "/open/1")))[0].who == "public"
    with pytest.raises(ConfigError, match="two endpoints are mounted at POST /v1/chat"):
        Router([Route("POST", "/v1/chat", handle, "user"), Route("POST", "/v1/chat", handle, "public")])  # type: ignore[arg-type]


async def test_two_plugins_with_the_same_endpoints_are_a_configuration_error(start: Start) -> None:
    text = "plugins: {cache: {}, other: {use: cache, ttl: 5}}\nchains: {chat: [cache], embeddings: [other]}\n"
    with pytest.raises(
        ConfigError, match=r"proxy.yaml:1: plugins.other: 'cache' and 'other' would both answer GET /api"
    ):
        async with start(text):
            pass


async def test_a_model_unloaded_meanwhile_is_loaded_by_a_separate_call(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstreams.model_loader.BELIEVED", 0.0)
    monkeypatch.setattr("proxy.upstreams.model_loader.FRESH", 0.0)
    async with start() as run:
        assert (await run.chat()).status == 200
        address = run.server.config.upstreams["local"].urls[0]
        await run.http.post(f"{address}/api/chat", json={"model": "demo", "messages": [], "keep_alive": 0})
        run.ollama.seen.clear()
        assert (await run.chat()).status == 200
        first, second = (one.body for one in run.ollama.seen if one.path == "/api/chat")
        assert first["messages"] == [] and second["messages"]


async def test_a_stopping_server_closes_connections_and_finishes_running_streams(start: Start) -> None:
    async with start("chains: {chat: []}\n", Simulator(delay=0.02)) as run:
        answer = await run.chat(stream=True)
        await answer.content.readline()
        run.server.readiness.stopping = True
        other = await run.http.get(f"{run.url}/healthz")
        assert other.headers["Connection"] == "close"
        assert "[DONE]" in await answer.text()


@pytest.mark.parametrize("headers", [{"Host": "\udcff\udcfe"}, {"Origin": "http://["}, {"Origin": "\udcff"}])
async def test_invalid_bytes_in_headers_get_an_error_in_openais_form(start: Start, headers: dict[str, str]) -> None:
    async with start() as run:
        host, port = run.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        given = {"Host": "127.0.0.1", "Connection": "close", **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        writer.write(f"GET /v1/models HTTP/1.1\r\n{lines}\r\n".encode(errors="surrogateescape"))
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert answer.split(b" ")[1] in (b"400", b"403")
        assert b'"error":{"message":' in answer and b"X-Request-Id" in answer


async def test_malformed_http_gets_an_error_in_openais_form(start: Start) -> None:
    async with start() as run:
        host, port = run.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\nbad header line\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert b" 400 " in answer and b'"error":{"message":' in answer and b"X-Request-Id" in answer


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [("/v1/models", "t" * 8000, 200), ("/v1/models", "t" * 8200, 431), (f"/v1/models/{'m' * 8200}", "t", 431)],
)
async def test_request_heads_that_are_too_large_get_a_clear_error(
    start: Start, path: str, token: str, status: int
) -> None:
    async with start() as run:
        response = await run.http.get(run.url + path, headers={"Authorization": f"Bearer {token}"})
        assert response.status == status
        told = (await response.json()).get("error")
    if status == 431:
        assert told["code"] == "head_too_large" and "8190 bytes" in told["message"]


async def test_a_body_that_does_not_arrive_in_time_is_a_408(start: Start) -> None:
    async with start(BARE + "\nrequests: {body_timeout: 0.1}\n") as run:
        host, port = run.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert b" 408 " in answer and b"did not arrive" in answer


async def test_a_call_ends_though_its_client_does_not_read_the_large_answer(start: Start) -> None:
    text = BARE + "\nstreams: {slow_reader: 0.2}\n"
    async with start(text, Simulator(say=lambda body: Said(pieces=("x" * 1_000_000,) * 16))) as run:
        host, port = run.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1)
        body = b'{"model":"demo","messages":[{"role":"user","content":"hi"}]}'
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await run.ollama.until(lambda: run.ollama.finished == 1)
        async with asyncio.timeout(10):
            await run.server.live.wait_until_idle()
        writer.transport.abort()


async def test_the_connection_of_a_client_that_reads_nothing_is_closed(start: Start) -> None:
    """Otherwise its connection, and what is buffered for it, would stay for ever."""
    asks = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 600_000  # more than any socket buffer holds
    async with start(BARE + "\nstreams: {slow_reader: 0.1}\n") as run, asyncio.timeout(30):
        host, port = run.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.setblocking(False)
            with pytest.raises(ConnectionError):
                await asyncio.get_running_loop().sock_sendall(client, asks)


async def test_a_slow_client_keeps_its_connection_as_long_as_it_reads_something() -> None:
    left, gone = [70_000, 69_000, 69_000, 1, 1, 1], asyncio.Event()

    class Slow(asyncio.Transport):
        def get_write_buffer_size(self) -> int:
            return left.pop(0)

        def abort(self) -> None:
            gone.set()

    async def front(request: web.BaseRequest) -> web.StreamResponse:
        raise AssertionError

    connection = HttpServer(front, lambda: 0, lambda: 0.001)()
    connection.transport = Slow()
    connection.pause_writing()
    async with asyncio.timeout(10):
        await gone.wait()
    assert left == []


async def test_ignored_fields_inside_messages_and_tools_are_reported_too(start: Start) -> None:
    async with start() as run:
        answer = await run.chat(
            messages=[{"role": "user", "content": "hi", "cache_control": {}}],
            tools=[{**tool({}), "extra": 1}],
        )
        told = answer.headers["x-gemmapy-params"]
        assert "messages.cache_control=ignored" in told and "tools.extra=ignored" in told


async def test_a_model_name_cannot_forge_a_log_line(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    from proxy.logs import plain_line

    caplog.set_level(logging.INFO, "gemmapy.requests")
    async with start() as run:
        await run.chat(model='x status=200 caller="root"\n')
    (told,) = (record.__dict__["told"] for record in caplog.records)
    line = plain_line("now", told)
    assert line.count(b"\n") == 1 and b'model="x status=200 caller=\\"root\\"\\n"' in line


async def test_a_plugins_connection_error_is_an_internal_error(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "refusing_store.py").write_text(
        "from proxy.config import Strict\n\n\nclass X:\n    class Settings(Strict):\n        pass\n\n"
        "    def __init__(self, settings, host):\n        pass\n\n"
        "    async def __call__(self, call, call_next):\n        raise ConnectionRefusedError('redis')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    async with start("plugins: {x: {use: 'refusing_store:X'}}\nchains: {chat: [x]}\n") as run:
        for stream in (False, True):
            assert (await error_of(await run.chat(stream=stream), 500))["code"] == "internal_error"


@pytest.mark.parametrize(
    ("path", "last"), [("/v1/chat/completions", b"data: [DONE]\n\n"), ("/api/chat", b'"done_reason":"stop"}\n')]
)
async def test_an_http_1_0_stream_ends_by_closing_the_connection_despite_keep_alive(
    start: Start, path: str, last: bytes
) -> None:
    body = b'{"model":"demo","stream":true,"messages":[{"role":"user","content":"hi"}]}'
    head = f"POST {path} HTTP/1.0\r\nConnection: keep-alive\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    async with start() as run:
        host, port = run.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert answer.endswith(last) and b"keep-alive" not in answer


async def test_a_client_that_sent_expect_100_continue_gets_the_error_server_stopped_too(start: Start) -> None:
    """The interim `100 Continue` does not count as a response that has begun."""
    async with start(f"{BARE}\nlisten: {{port: 0, drain: 0.05}}\n", Simulator(delay=30)) as run:
        asking = asyncio.ensure_future(run.http.post(f"{run.url}/v1/chat/completions", json=ASK, expect100=True))
        await run.ollama.until(lambda: run.ollama.running == 1)
        run.server.hurry.set()
    told = await error_of(await asking, 503)
    assert told["code"] == "server_stopped"
