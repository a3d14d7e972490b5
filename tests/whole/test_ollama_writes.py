"""Requests that change an Ollama's models, through a running server: off by default, and for admins only."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import ollama
import pytest
from aiohttp import web

from proxy.port import Port
from proxy.upstreams.demo import Simulator, running
from tests.conftest import BARE, Start
from tests.whole.test_openai_upstream import Scripted, scripted

OPEN = f"{BARE}\nwrites: local\n"
KEYS = "keys: {user: u-key, ops: {key: o-key, role: admin}}\n"
BLOB = b"GGUF" + bytes(range(256)) * 20_000
"""Larger than the limit on request bodies."""


def digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


async def asked(http: aiohttp.ClientSession, method: str, url: str, **more: Any) -> tuple[int, str]:
    async with http.request(method, url, **more) as response:
        return response.status, await response.text()


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "pull"), ("POST", "create"), ("POST", "push"), ("POST", "copy"), ("DELETE", "delete")],
)
async def test_writes_are_refused_unless_enabled(start: Start, method: str, path: str) -> None:
    async with start() as run:
        before = len(run.ollama.seen)
        status, text = await asked(run.http, method, f"{run.url}/api/{path}", json={"model": "demo"})
        assert status == 404 and "is off: name an upstream under `writes`" in text
        assert (await asked(run.http, "HEAD", f"{run.url}/api/blobs/{digest(b'x')}"))[0] == 404
        assert len(run.ollama.seen) == before


async def test_only_admins_may_write(start: Start) -> None:
    async with start(OPEN + KEYS) as run:
        for key, status in ((None, 401), ("wrong", 401), ("u-key", 403), ("o-key", 200)):
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            body = {"source": "demo", "destination": f"copy-{status}"}
            told, text = await asked(run.http, "POST", f"{run.url}/api/copy", json=body, headers=headers)
            assert told == status
            assert status == 200 or (isinstance(text, str) and '"error"' in text)
        seen = [one for one in run.ollama.seen if one.path == "/api/copy"]
        assert len(seen) == 1 and "Authorization" not in seen[0].headers


async def test_the_stock_client_copies_deletes_and_pulls(start: Start) -> None:
    async with start(OPEN) as run, ollama.AsyncClient(host=run.url) as native:
        await native.copy("demo", "mine")
        names = [model.model for model in (await native.list()).models]
        assert "mine:latest" in names
        assert (await native.chat("mine", [{"role": "user", "content": "hi"}])).message.content
        await native.delete("mine")
        with pytest.raises(ollama.ResponseError, match="not found"):
            await native.delete("mine")
        steps = [part.status async for part in await native.pull("demo-vision", stream=True)]
        assert steps[-1] == "success" and len(steps) > 1


async def test_a_model_is_created_from_a_blob_larger_than_a_body_may_be(start: Start) -> None:
    text = f"{OPEN}requests: {{max_bytes: 100000}}\n"
    async with start(text) as run, ollama.AsyncClient(host=run.url) as native:
        url = f"{run.url}/api/blobs/{digest(BLOB)}"
        assert (await asked(run.http, "HEAD", url))[0] == 404
        assert (await asked(run.http, "POST", url, data=io.BytesIO(BLOB)))[0] == 201
        assert (await asked(run.http, "HEAD", url))[0] == 200
        assert (await asked(run.http, "POST", f"{run.url}/api/blobs/{digest(b'other')}", data=b"x"))[0] == 400
        steps = [
            part.status async for part in await native.create("mine", from_="demo", system="Be brief.", stream=True)
        ]
        assert steps[-1] == "success"


async def test_an_invalid_digest_is_not_forwarded(start: Start) -> None:
    async with start(OPEN) as run:
        before = len(run.ollama.seen)
        status, text = await asked(run.http, "POST", f"{run.url}/api/blobs/..%2F..%2Fchat", data=b"x")
        assert status == 400 and "digest" in text and len(run.ollama.seen) == before


async def test_with_several_hosts_the_request_must_name_one(start: Start) -> None:
    one, other = Simulator(), Simulator()
    async with running(one) as first, running(other) as second:
        text = f"{BARE}\nwrites: pool\nupstreams: {{pool: {{ollama: ['{first}', '{second}']}}}}\n"
        async with start(text) as run:
            body = {"source": "demo", "destination": "mine"}
            status, told = await asked(run.http, "POST", f"{run.url}/api/copy", json=body)
            assert status == 400 and "x-gemmapy-host" in told
            headers = {"x-gemmapy-host": second.removeprefix("http://")}
            assert (await asked(run.http, "POST", f"{run.url}/api/copy", json=body, headers=headers))[0] == 200
            chat = {"model": "mine", "messages": [{"role": "user", "content": "hi"}]}
            for _ in range(3):
                answer = await run.chat(**chat)
                assert answer.headers["x-gemmapy-upstream"] == f"pool/{headers['x-gemmapy-host']}"
    assert [sum(seen.path == "/api/copy" for seen in host.seen) for host in (one, other)] == [0, 1]


async def test_hosts_at_one_address_are_named_by_their_paths(start: Start) -> None:
    one, other = Scripted(b"", 200), Scripted(b"", 200)
    async with scripted({"/a/api/copy": one, "/b/api/copy": other}) as url:
        base = url.removesuffix("/v1")
        text = f"{BARE}\nwrites: pool\nupstreams: {{pool: {{ollama: ['{base}/a', '{base}/b']}}}}\n"
        async with start(text) as run:
            body = {"source": "demo", "destination": "mine"}
            status, told = await asked(run.http, "POST", f"{run.url}/api/copy", json=body)
            assert status == 400 and "/a, " in told and told.endswith('/b."}') and not one.seen + other.seen
            headers = {"x-gemmapy-host": f"{base.removeprefix('http://')}/a"}
            assert (await asked(run.http, "POST", f"{run.url}/api/copy", json=body, headers=headers))[0] == 200
    assert (len(one.seen), len(other.seen)) == (1, 0)


async def test_an_unreachable_ollama_is_a_502_in_ollamas_error_form(start: Start) -> None:
    text = f"{BARE}\nwrites: gone\nupstreams: {{gone: {{ollama: 'http://127.0.0.1:9'}}}}\n"
    async with start(text) as run:
        status, told = await asked(run.http, "POST", f"{run.url}/api/pull", json={"model": "x"})
        assert status == 502 and told.startswith('{"error":"http://127.0.0.1:9')


async def test_a_compressed_body_is_refused_and_not_forwarded(start: Start) -> None:
    async with start(OPEN) as run:
        before = len(run.ollama.seen)
        headers = {"Content-Encoding": "gzip"}
        status, told = await asked(run.http, "POST", f"{run.url}/api/pull", data=gzip.compress(b"{}"), headers=headers)
        assert status == 415 and "compressed" in told and len(run.ollama.seen) == before


async def test_a_client_that_expects_100_continue_gets_it(start: Start) -> None:
    async with start(OPEN) as run:
        url = f"{run.url}/api/blobs/{digest(b'small')}"
        async with asyncio.timeout(10), run.http.post(url, data=b"small", expect100=True) as response:
            assert response.status == 201


async def test_a_digest_followed_by_anything_is_not_forwarded(start: Start) -> None:
    async with start(OPEN) as run:
        before = len(run.ollama.seen)
        for path in (f"{digest(b'x')}%2F..%2F..%2Fapi%2Fdelete", f"{digest(b'x')}a", f"{digest(b'x')}%0d%0a"):
            status, _ = await asked(run.http, "POST", f"{run.url}/api/blobs/{path}", data=b"x")
            assert status in (400, 404)
        assert len(run.ollama.seen) == before


async def test_a_redirect_is_not_followed(start: Start) -> None:
    led = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        led.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    await Port(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with start(f"{BARE}\nwrites: far\nupstreams: {{far: {{ollama: '{url}'}}}}\n") as run:
        status, _ = await asked(run.http, "POST", f"{run.url}/api/pull", json={"model": "x"}, allow_redirects=False)
    await runner.cleanup()
    assert status == 307 and led.count("/elsewhere") == 0


@asynccontextmanager
async def saying(piece: bytes, reset: bool) -> AsyncIterator[str]:
    """A server whose answer ends when its connection closes, or is cut off by a reset."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n" + piece)
        await writer.drain()
        await going.wait()
        if reset:  # SO_LINGER with a time of 0 makes close() send a reset
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()

    going = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        asyncio.get_running_loop().call_later(0.05, going.set)
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.mark.parametrize("piece", [b'{"status":"pulling"}\n', b""])
@pytest.mark.parametrize("reset", [False, True])
async def test_an_answer_that_the_upstream_cuts_off_is_cut_off_for_the_client(
    start: Start, piece: bytes, reset: bool
) -> None:
    async with (
        saying(piece, reset) as url,
        start(f"{BARE}\nwrites: far\nupstreams: {{far: {{ollama: '{url}'}}}}\n") as run,
    ):
        pulling = asked(run.http, "POST", f"{run.url}/api/pull", json={"model": "x"})
        if reset:
            with pytest.raises(aiohttp.ClientPayloadError):
                await pulling
        else:
            assert await pulling == (200, piece.decode())
