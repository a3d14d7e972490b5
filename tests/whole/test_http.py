"""HTTP as such: bodies, headers, keys, browsers, health, and the log lines of requests."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
import zlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from proxy.logs import json_line, plain_line
from proxy.upstreams.demo import Fault, Simulator
from tests.conftest import ASK, Running, Start
from tests.whole.asking import asked, dead_url, error_of, shaped, streamed, user, whole

CHAT = "/v1/chat/completions"
BOTH = "chains: {chat: [], embeddings: []}\n"
KEYED = BOTH + "keys: {alice: alice-canary-key, root: {key: root-canary-key, role: admin}}\n"
DESK = "plugins: {desk: {use: 'tests.whole.rigged:Desk'}}\n"
SMALL = BOTH + "requests: {max_bytes: 20000, max_depth: 16}\n"
JSON = {"Content-Type": "application/json"}


async def post(run: Running, body: Any, path: str = CHAT, **headers: str) -> aiohttp.ClientResponse:
    """Sends the bytes as they are; `_` in a header's name stands for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await run.http.post(run.url + path, data=body, headers={**JSON, **named})


def written(**body: Any) -> bytes:
    return json.dumps({**ASK, **body}).encode()


# --- bodies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"{'a': 1}", b'{"model": "demo",}', b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00", b'{"model": "\xff"}',
        b'{"model": NaN}', b'{"model": "\\ud800"}', b"{} {}", b"nul", b"\x00", b'{"a":' * 100_000, b"[" * 100_000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings"])
async def test_a_body_that_is_not_json_is_refused(start: Start, body: bytes, path: str) -> None:
    async with start() as run:
        error = await error_of(await post(run, body, path), 400)
        await whole(await run.chat())
    assert error["type"] == "invalid_request_error" and error["code"] == "invalid_json" and error["param"] is None


@pytest.mark.parametrize("body", [b"[]", b"3", b'"x"', b"null", b"true"])
@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings"])
async def test_json_other_than_an_object_is_refused(start: Start, body: bytes, path: str) -> None:
    async with start() as run:
        error = await error_of(await post(run, body, path), 400)
    assert error["code"] == "invalid_type" and "object" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        (CHAT, {}, "model", "missing_required_parameter"),
        (CHAT, {"model": "demo"}, "messages", "missing_required_parameter"),
        (CHAT, {"model": ["demo"]}, "model", "invalid_type"),
        (CHAT, {**ASK, "messages": {}}, "messages", "invalid_type"),
        (CHAT, {**ASK, "temperature": "hot"}, "temperature", "invalid_type"),
        (CHAT, {**ASK, "tools": [{"name": "f"}]}, "tools[0].type", "missing_required_parameter"),
        ("/v1/embeddings", {}, "model", "missing_required_parameter"),
        ("/v1/embeddings", {"model": "demo-embed"}, "input", "missing_required_parameter"),
        ("/v1/embeddings", {"model": "demo-embed", "input": []}, "input", "empty_array"),
        ("/v1/embeddings", {"model": "demo-embed", "input": ""}, "input", "empty_string"),
        ("/v1/embeddings", {"model": "demo-embed", "input": ["x", 1]}, "input[1]", "invalid_type"),
        ("/v1/embeddings", {"model": "demo-embed", "input": [1, "x"]}, "input[1]", "invalid_type"),
        ("/v1/embeddings", {"model": "demo-embed", "input": "x", "dimensions": 0}, "dimensions", None),
        ("/v1/embeddings", {"model": "demo-embed", "input": "x", "encoding_format": "hex"}, "encoding_format", None),
    ],
)
async def test_a_wrong_field_is_named(start: Start, path: str, body: Any, param: str, code: str | None) -> None:
    async with start() as run:
        error = await error_of(await post(run, json.dumps(body), path), 400)
    assert error["param"] == param and code in (error["code"], None)


async def test_a_body_that_is_too_large_is_refused_by_its_length(start: Start) -> None:
    async with start(SMALL) as run:
        error = await error_of(await post(run, written(messages=user("x" * 30_000))), 413)
        fitting = await post(run, written(messages=user("x" * 10_000)))
        assert fitting.status == 200
    assert error["code"] == "request_too_large" and "20000" in error["message"]


async def test_a_chunked_body_that_is_too_large_is_refused_while_it_arrives(start: Start) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    async with start(SMALL) as run:
        error = await error_of(await post(run, parts()), 413)
        await whole(await run.chat())
    assert error["code"] == "request_too_large"


async def test_a_body_in_chunks_is_read(start: Start) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for place in range(0, len(sent), 7):
            yield sent[place : place + 7]

    sent = written()
    async with start(SMALL) as run:
        assert (await post(run, parts())).status == 200


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"properties": {"a": value}}
    return value


@pytest.mark.parametrize(
    "field",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": nested(20)}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": nested(20)}}},
        {"prompt_cache_options": nested(20)},
    ],
)
async def test_a_body_that_is_too_deep_is_refused(start: Start, field: dict[str, Any]) -> None:
    async with start(SMALL) as run:
        error = await error_of(await run.chat(**field), 400)
    assert error["code"] == "too_deep" and error["param"].startswith(next(iter(field)))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/api/chat", "/api/show"])
async def test_a_body_of_too_many_values_is_refused(start: Start, path: str) -> None:
    async with start() as run:
        body = b'{"model":"demo","messages":[' + b",".join([b"{}"] * 200_000) + b"]}"
        headers = {"Content-Type": "application/json"}
        response = await run.http.post(run.url + path, data=body, headers=headers)
        told = await response.json()
    assert response.status == 400
    assert "more than 100000 objects" in (told["error"] if path.startswith("/api") else told["error"]["message"])
    assert path.startswith("/api") or told["error"]["code"] == "too_many_values"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
async def test_an_unsupported_content_type_is_refused(start: Start, kind: str) -> None:
    async with start() as run:
        error = await error_of(await post(run, written(), Content_Type=kind), 415)
        assert not run.ollama.seen
    assert error["code"] == "unsupported_media_type" and "application/json" in error["message"]


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.api+json"])
async def test_every_json_content_type_is_accepted(start: Start, kind: str) -> None:
    async with start() as run:
        assert (await post(run, written(), Content_Type=kind)).status == 200


async def test_a_body_without_a_content_type_is_read(start: Start) -> None:
    async with start() as run:
        head, _ = await raw(run, f"Content-Length: {len(written())}", body=written())
    assert head.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("coding", "squeeze"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)]
)
async def test_a_compressed_body_is_read(start: Start, coding: str, squeeze: Any) -> None:
    async with start() as run:
        response = await post(run, squeeze(written(messages=user("squeezed"))), Content_Encoding=coding)
        assert "squeezed" in json.dumps(await whole(response))


@pytest.mark.parametrize(("coding", "squeeze"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_compression_bomb_is_refused(start: Start, coding: str, squeeze: Any) -> None:
    bomb = squeeze(b" " * 10_000_000)
    async with start(SMALL) as run:
        assert len(bomb) < 20_000
        error = await error_of(await post(run, bomb, Content_Encoding=coding), 413)
        await whole(await run.chat())
    assert error["code"] == "request_too_large"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_body_that_does_not_match_its_content_encoding_is_refused(
    start: Start, coding: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with start() as run:
        error = await error_of(await post(run, b"this is not compressed at all", Content_Encoding=coding), 400)
        await whole(await run.chat())
    assert error["type"] == "invalid_request_error"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("coding", ["snappy", "br", "zstd"])
async def test_an_unknown_content_encoding_is_refused(start: Start, coding: str) -> None:
    async with start() as run:
        error = await error_of(await post(run, b"\x28\xb5\x2f\xfd squeezed", Content_Encoding=coding), 415)
    assert error["code"] == "unsupported_encoding"


# --- raw requests ----------------------------------------------------------------------------------


@asynccontextmanager
async def connection(run: Running) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    parts = urlsplit(run.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


async def raw(run: Running, *headers: str, body: bytes = b"", line: str = f"POST {CHAT}") -> tuple[bytes, bytes]:
    """The head and the body of the answer to a request written by hand."""
    async with connection(run) as (reader, writer):
        lines = [f"{line} HTTP/1.1", "Connection: close", *headers]
        if not any(header.lower().startswith("host:") for header in headers):
            lines.insert(1, "Host: localhost")
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        async with asyncio.timeout(10):
            head, _, rest = (await reader.read()).partition(b"\r\n\r\n")
    return head, rest


async def test_a_client_that_expects_100_continue_gets_it(start: Start) -> None:
    async with start() as run, connection(run) as (reader, writer):
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(written())}\r\n\r\n".encode())
        async with asyncio.timeout(10):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(written())
            answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 200") and b"100 Continue" not in answer


async def test_an_http_1_0_client_gets_no_100_continue(start: Start) -> None:
    """It would take the interim response for the final one."""
    async with start() as run, connection(run) as (reader, writer):
        head = f"POST {CHAT} HTTP/1.0\r\nHost: localhost\r\nExpect: 100-continue\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(written())}\r\n\r\n".encode())
        writer.write(written())
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.0 200")


async def test_the_stock_client_may_expect_100_continue_too(start: Start) -> None:
    async with start() as run:
        response = await run.http.post(run.url + CHAT, json=ASK, expect100=True)
        assert response.status == 200


@pytest.mark.parametrize(
    ("yaml", "length", "header", "status"),
    [(SMALL, 30_000, "X-Any: x", 413), (KEYED, 100, "Authorization: Bearer wrong", 401)],
)
async def test_no_100_continue_is_sent_for_a_request_that_is_refused(
    start: Start, yaml: str, length: int, header: str, status: int
) -> None:
    async with start(yaml) as run, connection(run) as (reader, writer):
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n{header}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode())
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(f"HTTP/1.1 {status}".encode())


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (b"GARBAGE\r\n\r\n", (400,)),
        (b"GET / HTTP/9.9\r\n\r\n", (400, 505)),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n", (400,)),
        (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            (400,),
        ),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", (400, 431)),
    ],
)
async def test_malformed_http_is_refused_and_the_server_keeps_working(
    start: Start, sent: bytes, statuses: tuple[int, ...]
) -> None:
    async with start() as run:
        async with connection(run) as (reader, writer):
            writer.write(sent)
            async with asyncio.timeout(10):
                line = await reader.readline()
        assert int(line.split()[1]) in statuses
        await whole(await run.chat())


async def test_a_field_name_cannot_add_a_header(start: Start) -> None:
    evil = {"x\r\nSet-Cookie: a=b": 1, "tab\tnul\x00ü🦙": 1, "a" * 5000: 1}
    async with start() as run:
        for stream in (False, True):
            response = await run.chat(**evil, stream=stream)
            assert response.status == 200 and await response.read()
            told = response.headers["x-gemmapy-params"]
            assert "Set-Cookie" not in response.headers and told.isascii() and told.isprintable() and len(told) <= 2000
        refused = await run.chat(**{"x\r\nSet-Cookie: a=b": 1, "n": "x\r\nSet-Cookie: a=b"})
        assert refused.status == 400 and "Set-Cookie" not in refused.headers


@pytest.mark.parametrize("name", ["no such\r\nSet-Cookie: a=b", "x" * 600, "🦙\x00", "../../etc/passwd", "%0d%0a"])
async def test_a_hostile_model_name_is_just_not_found(start: Start, name: str) -> None:
    async with start() as run:
        response = await run.chat(model=name)
        error = await error_of(response, 404)
    assert error["code"] == "model_not_found" and len(error["message"]) < 500 and "Set-Cookie" not in response.headers


@pytest.mark.parametrize("given", ["has spaces", "x" * 200, "a\tb", "ü", "", "a,b;c"])
async def test_an_invalid_request_id_is_replaced(start: Start, given: str) -> None:
    async with start() as run:
        response = await post(run, written(), X_Request_Id=given)
    assert response.headers["x-request-id"].startswith("req_")


async def test_every_response_carries_the_request_id_that_was_sent(start: Start) -> None:
    async with start() as run:
        for path in (CHAT, "/nowhere", "/healthz"):
            response = await post(run, written(), path, X_Request_Id="mine-1.a:b_c")
            assert response.headers["x-request-id"] == "mine-1.a:b_c"


# --- paths and methods -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1", "/v1/chat", "/v2/models", "/v1/chat/completions/", "/api/nothing", "//v1/models"]
)
async def test_an_unknown_path_is_not_found(start: Start, path: str) -> None:
    async with start() as run:
        for method in ("GET", "POST"):
            error = await error_of(await run.http.request(method, run.url + path), 404)
            assert error["code"] == "unknown_url" and error["type"] == "invalid_request_error"
        assert not run.ollama.seen


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/chat/completions", "did you mean /v1/chat/completions?"),
        ("/v1/v1/models", "did you mean /v1/models?"),
        ("/v1/v1/models/demo", "did you mean /v1/models/demo?"),
        ("/v1/api/chat", "did you mean /api/chat?"),
        ("/v1/chat/completions/", "did you mean /v1/chat/completions?"),
        ("/v1/chat/completion", "did you mean /v1/chat/completions?"),
        ("/v1/model", "did you mean /v1/models?"),
        ("/v1/" + "chat/completions" * 9, "Unknown request URL: POST /v1/"),
        ("/v1/responses/resp_1/cancel", "not served here; what is kept of POST /v1/responses"),
        ("/v1/threads/t_1/runs", "not served here; use POST /v1/chat/completions"),
        ("/v1/audio/speech", "models here read and write text"),
        ("/v1", "Unknown request URL: POST /v1"),
        ("/api/rag/documents", "the plugin `documents` must be in the configuration"),
        ("/metrics", "the plugin `metrics` must be in the configuration"),
    ],
)
@pytest.mark.parametrize("base", ["", "/llm"])
async def test_an_unknown_path_gets_a_hint_at_the_right_one(start: Start, base: str, path: str, told: str) -> None:
    async with start(f"{BOTH}listen: {{port: 0, base_path: '{base}'}}") as run:
        error = await error_of(await run.http.post(run.url + base + path), 404)
    assert error["code"] == "unknown_url"
    assert re.sub(r"(?<= )/", f"{base}/", told) in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "told"),
    [
        ("POST", "/v1/embeddings", "/v1/embeddings is off: no chain `embeddings` in the configuration."),
        ("POST", "/api/embed", "/api/embed is off: no chain `embeddings` in the configuration."),
        ("POST", "/api/pull", "/api/pull is off: name an upstream under `writes` in the configuration."),
        ("HEAD", "/api/blobs/sha256:1", ""),
        ("POST", "/api/blobs/sha256:1", "/api/blobs/sha256:1 is off: name an upstream under `writes`"),
    ],
)
async def test_a_disabled_endpoint_says_why_in_the_error_form_of_its_dialect(
    start: Start, method: str, path: str, told: str
) -> None:
    async with start("chains: {chat: [], completions: []}") as run:
        response = await run.http.request(method, run.url + path)
        text = await response.text()
    assert response.status == 404
    if path.startswith("/v1"):
        error = json.loads(text)["error"]
        assert (error["message"], error["code"]) == (told, "route_off")
    elif told:
        assert json.loads(text)["error"].startswith(told)


async def test_a_wrong_method_at_an_ollama_path_gets_ollamas_error_form(start: Start) -> None:
    async with start() as run:
        response = await run.http.get(f"{run.url}/api/chat")
        assert response.status == 405 and isinstance((await response.json())["error"], str)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, {"POST"}),
        ("DELETE", CHAT, {"POST"}),
        ("GET", "/v1/embeddings", {"POST"}),
        ("POST", "/v1/models", {"GET"}),
        ("POST", "/v1/models/demo", {"GET"}),
        ("PUT", "/healthz", {"GET"}),
        ("OPTIONS", CHAT, {"POST"}),
    ],
)
async def test_a_wrong_method_is_a_405_with_the_allowed_ones(
    start: Start, method: str, path: str, allowed: set[str]
) -> None:
    async with start() as run:
        response = await run.http.request(method, run.url + path)
        error = await error_of(response, 405)
    assert set(response.headers["Allow"].split(", ")) >= allowed and error["type"] == "invalid_request_error"
    assert all(one in error["message"].partition("; use ")[2] for one in allowed)


async def test_a_route_without_a_chain_is_off(start: Start) -> None:
    async with start("chains: {chat: []}") as run:
        await error_of(await run.embed(), 404)
        await whole(await run.chat())


@pytest.mark.parametrize("id", ["demo", "demo:latest", "demo%3Alatest"])
async def test_a_model_is_found_by_its_path(start: Start, id: str) -> None:
    async with start() as run, run.http.get(f"{run.url}/v1/models/{id}") as response:
        assert (await whole(response))["object"] == "model"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("demoo", "access to it.  Did you mean 'demo'?"),
        ("gpt-4o-mnii", "access to it.  Did you mean 'gpt-4o-mini'?"),
        ("demo-embd", "access to it.  GET /v1/models lists those that are available."),
        ("hidden", "access to it.  GET /v1/models lists those that are available."),
        ("xyzzy", "access to it.  GET /v1/models lists those that are available."),
        ("template:summarize", "is served by the plugin `templates`, in the chains that contain it."),
    ],
)
async def test_an_unknown_model_gets_a_hint_at_the_nearest_allowed_one(start: Start, asked: str, told: str) -> None:
    models = "models: {gpt-4o-mini: {alias: demo}, hidden: {alias: demo, allowed: false}, demo-embed: {allowed: false}}"
    async with start(f"{BOTH}{models}\n") as run:
        error = await error_of(await run.chat(model=asked), 404)
    assert error["code"] == "model_not_found" and error["message"].endswith(told)


# --- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic YWxpY2U6YWxpY2UtY2FuYXJ5LWtleQ==", "alice-canary-key",
        "Bearer alice-canary-key2", "Bearer alice-canary-ke", "Bearer ALICE-CANARY-KEY", "Bearer x" + "y" * 5000,
        "Bearer k\u00e4se",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("method", "path"), [("POST", CHAT), ("POST", "/v1/embeddings"), ("GET", "/v1/models"), ("GET", "/v1/models/demo")]
)
async def test_without_a_valid_key_every_call_is_refused(
    start: Start, given: str | None, method: str, path: str
) -> None:
    headers = {} if given is None else {"Authorization": given}
    async with start(KEYED) as run:
        response = await run.http.request(method, run.url + path, headers=headers, json=ASK)
        error = await error_of(response, 401)
        assert not run.ollama.seen
    assert error["code"] == "invalid_api_key" and error["type"] == "authentication_error"
    assert response.headers["WWW-Authenticate"] == "Bearer" and "canary" not in error["message"]


@pytest.mark.parametrize("given", ["Bearer alice-canary-key", "bearer alice-canary-key", "Bearer   root-canary-key"])
async def test_with_a_valid_key_every_call_is_answered(start: Start, given: str) -> None:
    async with start(KEYED) as run:
        await whole(await post(run, written(), Authorization=given))
        await whole(await run.http.get(f"{run.url}/v1/models", headers={"Authorization": given}))


async def test_a_key_is_never_passed_on(start: Start) -> None:
    secrets = {"Authorization": "Bearer alice-canary-key", "Cookie": "cookie-canary=1", "X-Api-Key": "header-canary"}
    async with start(KEYED) as run:
        await whole(await post(run, written(user="alice"), **{n.replace("-", "_"): v for n, v in secrets.items()}))
        assert run.ollama.seen
        for one in run.ollama.seen:
            assert "canary" not in json.dumps([dict(one.headers), one.body])


@pytest.mark.parametrize(
    ("key", "user_page", "admin_page"),
    [("alice-canary-key", 200, 403), ("root-canary-key", 200, 200), ("other", 401, 401)],
)
async def test_a_role_decides_which_endpoints_a_key_may_use(
    start: Start, key: str, user_page: int, admin_page: int
) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    async with start(KEYED + DESK) as run:
        assert (await run.http.get(f"{run.url}/desk/user", headers=headers)).status == user_page
        response = await run.http.get(f"{run.url}/desk/admin", headers=headers)
        assert response.status == admin_page
        if admin_page == 403:
            assert (await error_of(response, 403))["code"] == "insufficient_permissions"
        assert await (await run.http.get(f"{run.url}/desk/bob/public")).text() == "bob"


async def test_without_keys_everybody_on_this_machine_is_admin(start: Start) -> None:
    async with start(BOTH + DESK) as run:
        assert (await run.http.get(f"{run.url}/desk/admin")).status == 200


async def test_an_exception_in_the_middle_of_a_response_closes_the_connection(start: Start) -> None:
    """An error response after it would be read as the missing rest of the first one."""
    async with start(BOTH + DESK) as run:
        response = await run.http.get(f"{run.url}/desk/half")
        assert await response.content.readexactly(5) == b"begun"
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


# --- browsers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "10.0.0.1", "", "[::2]"]
)
@pytest.mark.parametrize("path", ["/v1/models", "/healthz"])
async def test_without_keys_an_unknown_host_header_is_refused(start: Start, host: str, path: str) -> None:
    async with start() as run:
        head, body = await raw(run, f"Host: {host}", line=f"GET {path}")
    assert head.startswith(b"HTTP/1.1 403") and shaped(json.loads(body))["code"] == "host_not_allowed"


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:99", "app.localhost", "[::1]:8080", "proxy.lan", "PROXY.lan:80"]
)
async def test_a_host_header_naming_this_machine_is_accepted(start: Start, host: str) -> None:
    async with start(BOTH + "web: {hosts: [proxy.lan]}") as run:
        head, _ = await raw(run, f"Host: {host}", line="GET /v1/models")
    assert head.startswith(b"HTTP/1.1 200")


async def test_with_keys_any_host_header_is_accepted(start: Start) -> None:
    async with start(KEYED) as run:
        head, _ = await raw(run, "Host: proxy.example", "Authorization: Bearer alice-canary-key", line="GET /v1/models")
    assert head.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", "file://", "x"])
async def test_without_keys_a_foreign_origin_is_refused(start: Start, origin: str) -> None:
    async with start() as run:
        response = await post(run, written(), Origin=origin)
        error = await error_of(response, 403)
        assert not run.ollama.seen
    assert error["code"] == "origin_not_allowed" and "Access-Control-Allow-Origin" not in response.headers


async def test_a_refused_host_or_origin_at_an_ollama_path_gets_ollamas_error_form(start: Start) -> None:
    async with start() as run:
        for header in ("Host: evil.example", "Host: localhost\r\nOrigin: https://evil.example"):
            head, body = await raw(run, header, line="GET /api/tags")
            assert head.startswith(b"HTTP/1.1 403") and "is not" in json.loads(body)["error"]


async def test_cors_is_off_by_default(start: Start) -> None:
    async with start(KEYED) as run:
        response = await post(run, written(), Origin="https://app.example", Authorization="Bearer alice-canary-key")
        assert response.status == 200 and not cors(response)
        asking = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        preflight = await run.http.options(run.url + CHAT, headers=asking)
        assert preflight.status >= 400 and not cors(preflight)


def cors(response: aiohttp.ClientResponse) -> set[str]:
    return {name for name in response.headers if name.lower().startswith("access-control-")}


ORIGINS = "web: {origins: ['https://app.example']}\n"


@pytest.mark.parametrize("yaml", [BOTH + ORIGINS, KEYED + ORIGINS])
async def test_an_allowed_origin_may_call_and_read_the_response(start: Start, yaml: str) -> None:
    origin = "https://app.example"
    asking = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    async with start(yaml) as run:
        preflight = await run.http.options(run.url + CHAT, headers=asking)
        answer = await post(run, written(), Origin=origin, Authorization="Bearer alice-canary-key")
        stream = await post(run, written(stream=True), Origin=origin, Authorization="Bearer alice-canary-key")
        missing = await post(run, b"", "/nowhere", Origin=origin, Authorization="Bearer alice-canary-key")
    assert preflight.status == 204 and preflight.headers["Access-Control-Allow-Origin"] == origin
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    assert "authorization" in preflight.headers["Access-Control-Allow-Headers"].lower()
    assert (answer.status, stream.status, missing.status) == (200, 200, 404)
    for response in (answer, stream, missing):
        assert response.headers["Access-Control-Allow-Origin"] == origin
        assert "Origin" in response.headers["Vary"]
        assert response.headers.get("Access-Control-Allow-Credentials") is None


async def test_another_origin_is_not_allowed(start: Start) -> None:
    asking = {"Origin": "https://other.example", "Access-Control-Request-Method": "POST"}
    async with start(KEYED + ORIGINS) as run:
        preflight = await run.http.options(run.url + CHAT, headers=asking)
        assert preflight.status == 403 and not cors(preflight)


async def test_an_invalid_origin_header_does_not_prevent_an_answer(start: Start) -> None:
    async with start(BOTH + 'keys: {alice: alice-canary-key}\nweb: {origins: ["*"]}\n') as run:
        length, key = f"Content-Length: {len(written())}", "Authorization: Bearer alice-canary-key"
        head, body = await raw(run, "Origin: \xff\xfe", length, key, body=written())
    assert head.startswith(b"HTTP/1.1 200") and b"Allow-Origin" not in head and b'"choices"' in body


async def test_a_page_may_read_an_error_and_its_id(start: Start) -> None:
    async with start(KEYED + ORIGINS) as run:
        response = await post(run, written(), Origin="https://app.example")
        await error_of(response, 401)
    assert response.headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert "*" in response.headers["Access-Control-Expose-Headers"]


# --- health ----------------------------------------------------------------------------------------


async def test_health_is_public_and_runs_no_model(start: Start) -> None:
    async with start(KEYED) as run:
        for path in ("/healthz", "/readyz"):
            response = await run.http.get(run.url + path)
            assert (await whole(response))["status"] == "ok"
            assert response.headers["x-request-id"]
        assert {one.path for one in run.ollama.seen} <= {"/api/version"}


async def test_a_server_without_its_ollama_is_alive_but_not_ready(start: Start) -> None:
    async with start(BOTH + f"upstreams: {{gone: {{ollama: '{dead_url()}'}}}}") as run:
        assert (await run.http.get(f"{run.url}/healthz")).status == 200
        response = await run.http.get(f"{run.url}/readyz")
        document = await response.json()
        models = await error_of(await run.http.get(f"{run.url}/v1/models"), 502)
    assert response.status == 503 and document["upstreams"] == {"gone": "unreachable"}
    assert models["code"] == "upstream_connect"


async def test_one_reachable_upstream_of_two_is_enough_to_be_ready(start: Start) -> None:
    yaml = BOTH + f"upstreams: {{gone: {{ollama: '{dead_url()}'}}, here: {{ollama: $OLLAMA}}}}"
    async with start(yaml) as run:
        ready = await whole(await run.http.get(f"{run.url}/readyz"))
        await whole(await run.chat())
        models = await whole(await run.http.get(f"{run.url}/v1/models"))
    assert ready["upstreams"] == {"gone": "unreachable", "here": "ok"} and models["data"]


# --- the log ---------------------------------------------------------------------------------------


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.__dict__["told"] for record in caplog.records if record.name == "gemmapy.requests"]


def everything(records: Iterable[logging.LogRecord]) -> str:
    return "\n".join(f"{record.getMessage()} {record.__dict__} {record.exc_text or ''}" for record in records)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_log_line_describes_the_request_without_secrets(
    start: Start, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    body = written(messages=user("body-canary"), user="user-canary", stream=stream, made_up="field-canary")
    async with start(KEYED) as run:
        response = await post(
            run, body, CHAT + "?key=query-canary", Authorization="Bearer alice-canary-key", X_Request_Id="id-1"
        )
        assert response.status == 200 and await response.read()
        async with asyncio.timeout(10):
            await run.server.live.pipeline.idle.wait()
    (told,) = lines(caplog)
    assert {name: told.get(name) for name in ("id", "caller", "method", "route", "model", "status")} == {
        "id": "id-1", "caller": "alice", "method": "POST", "route": "chat", "model": "demo:latest", "status": 200,
    }  # fmt: skip
    assert (
        not told.get("error")
        and told["tokens_in"] > 0
        and told["tokens_out"] > 0
        and 0 < told["first_ms"] <= told["total_ms"]
    )
    shown = everything(caplog.records)
    for secret in ("body-canary", "user-canary", "field-canary", "canary-key", "query-canary"):
        assert secret not in shown


async def test_failures_are_logged_too(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    wrong = {"Authorization": "Bearer wrong-canary"}
    async with start(KEYED, Simulator(faults=[Fault("error_line", after=2)])) as run:
        alice = {"Authorization": "Bearer alice-canary-key"}
        await error_of(await post(run, written(), **wrong), 401)
        await error_of(await post(run, b"{body-canary", **alice), 400)
        await error_of(await post(run, written(model="nobody"), **alice), 404)
        await streamed(await post(run, written(stream=True), **alice))
        await whole(await post(run, json.dumps({"model": "demo-embed", "input": "x"}), "/v1/embeddings", **alice))
        async with asyncio.timeout(10):
            await run.server.live.pipeline.idle.wait()
    told = [tuple(one.get(name) or "-" for name in ("status", "error", "caller", "route")) for one in lines(caplog)]
    assert told == [
        (401, "invalid_api_key", "-", "-"),
        (400, "invalid_json", "alice", "-"),
        (404, "model_not_found", "alice", "chat"),
        (200, "upstream_server", "alice", "chat"),
        (200, "-", "alice", "embeddings"),
    ]
    assert lines(caplog)[-1]["tokens_in"] > 0 and "canary" not in everything(caplog.records)


async def test_a_client_that_disconnects_is_logged(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with start(ollama=Simulator(faults=[Fault("stall")])) as run:
        asking = asyncio.ensure_future(run.chat())
        await run.ollama.until(lambda: run.ollama.running == 1)
        asking.cancel()
        await run.ollama.until_abandoned()
        async with asyncio.timeout(10):
            await run.server.live.pipeline.idle.wait()
    assert [one["status"] for one in lines(caplog)] == [499]


async def test_a_broken_rest_of_an_unread_body_is_not_logged_as_an_error(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Unauthenticated clients must not be able to fill the log with errors."""
    async with start() as run, connection(run) as (reader, writer), asyncio.timeout(10):
        head = "POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nContent-Length: 1000\r\n\r\n"
        writer.write(head.encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 404")
        writer.write(b"this was never gzip")
        await reader.read()
    assert all(record.levelno < logging.ERROR for record in caplog.records)


async def test_an_internal_error_is_logged_with_its_id_and_not_shown(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    yaml = "plugins: {bad: {use: 'tests.whole.rigged:Refusing', kind: fault}}\nchains: {chat: [bad]}"
    async with start(yaml) as run:
        for stream in (False, True):
            error = await error_of(await post(run, written(stream=stream), X_Request_Id="id-7"), 500)
            assert error["code"] == "internal_error" and "secret" not in error["message"]
    assert "id-7" in everything(caplog.records) and "ZeroDivisionError" in everything(caplog.records)
    assert not asked(run.ollama)


async def test_the_written_lines_cannot_be_forged(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with start() as run:
        await run.chat(model="x\n2026-01-01 forged=1\u2028\x1b[31m")
        await run.http.get(run.url + "/a%0Aforged")
    assert len(lines(caplog)) == 2
    for told in lines(caplog):
        for line in (plain_line("now", told), json_line("now", told)):
            assert line.count(b"\n") == 1 and line.endswith(b"\n") and b"\x1b" not in line
        assert json.loads(json_line("now", told))["id"] == told["id"]


async def test_a_client_that_disconnects_after_done_is_logged_as_answered(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gemmapy.requests")
    async with start() as run:
        for _ in range(20):
            async with aiohttp.ClientSession() as http:
                answer = await http.post(f"{run.url}/v1/chat/completions", json={**ASK, "stream": True})
                while b"[DONE]" not in await answer.content.readline():
                    pass
                answer.close()
        async with asyncio.timeout(10):
            await run.server.live.wait_until_idle()
    statuses = [record.__dict__["told"]["status"] for record in caplog.records]
    assert statuses == [200] * 20
