"""A real nginx in front, configured as docs/deployment.md says, with its default buffering."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from proxy.upstreams.demo import Fault, Said, Simulator
from tests.conftest import ASK, BARE, Running, Start
from tests.servers import free_port
from tests.test_docs import DOCS, blocks
from tests.whole.asking import PNG, asked, data_url, said, streamed, whole

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

(PAGE,) = blocks(DOCS / "deployment.md", "nginx")
# The protocol that nginx speaks to its upstream by default, in the most common versions.
OLD = PAGE.replace("proxy_http_version 1.1;", "proxy_http_version 1.0;")
STALLED = Fault("stall", after=2)
WORDS = Said(pieces=tuple(f"word {index} " for index in range(40)))

Through = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def through(start: Start, tmp_path: Path) -> Through:
    """Like `start`, but the Running's URL is nginx's.  page: nginx's configuration."""

    @asynccontextmanager
    async def started(text: str = BARE, ollama: Simulator | None = None, page: str = PAGE) -> AsyncIterator[Running]:
        async with start(text, ollama) as run, gateway(run.url, tmp_path, page) as url:
            run.url = url
            yield run

    return started


@asynccontextmanager
async def gateway(url: str, home: Path, page: str) -> AsyncIterator[str]:
    """The URL of an nginx in front of this server's URL."""
    port = free_port()
    (home / "nginx.conf").write_text(configuration(url, port, home, page))
    process = await asyncio.create_subprocess_exec(
        str(NGINX), "-e", str(home / "error.log"), "-c", str(home / "nginx.conf"), stderr=asyncio.subprocess.PIPE
    )
    try:
        await answering(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


def configuration(url: str, port: int, home: Path, page: str) -> str:
    """The documented configuration, changed to run without privileges and without a certificate."""
    page = page.replace("127.0.0.1:8080", url.removeprefix("http://"))
    page = re.sub(r"^ +ssl_.*\n", "", page, flags=re.M)
    page = page.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    assert str(port) in page and url.removeprefix("http://") in page
    places = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"{place}_temp_path {home}/{place};" for place in places)
    user = "user root;" if os.geteuid() == 0 else ""
    return f"""
{user} daemon off; worker_processes 1; pid {home}/nginx.pid;
events {{ worker_connections 256; }}
http {{ access_log off; {temporary} {page} }}
"""


async def answering(port: int, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(30):
        while process.returncode is None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                return
    assert process.stderr is not None
    raise AssertionError((await process.stderr.read()).decode())


async def tokens(response: aiohttp.ClientResponse, number: int) -> bytes:
    """What has arrived once this many chunks with text have."""
    seen = b""
    async with asyncio.timeout(10):
        while seen.count(b'"content":"') <= number:  # the first has the role and no text
            seen += await response.content.readany()
    return seen


@pytest.mark.parametrize("page", [PAGE, OLD], ids=["1.1", "1.0"])
async def test_a_stream_comes_token_by_token_while_the_model_still_works(through: Through, page: str) -> None:
    ollama = Simulator(faults=[STALLED])
    async with through(ollama=ollama, page=page) as run, await run.chat(stream=True) as response:
        assert b"[DONE]" not in await tokens(response, 2)
        assert run.ollama.running == 1, "Ollama has sent two tokens and no more"


@pytest.mark.parametrize("page", [PAGE, OLD], ids=["1.1", "1.0"])
async def test_native_streams_come_token_by_token_too(through: Through, page: str) -> None:
    async with through(ollama=Simulator(faults=[STALLED]), page=page) as run:
        async with run.http.post(f"{run.url}/api/chat", json=ASK) as response, asyncio.timeout(10):
            lines = [json.loads(await response.content.readline()) for _ in range(2)]
        assert all(line["message"]["content"] and not line["done"] for line in lines)


async def test_without_our_header_nginx_buffers_the_stream(through: Through) -> None:
    page = OLD.replace("proxy_pass", "proxy_ignore_headers X-Accel-Buffering; proxy_pass")
    ollama = Simulator(faults=[Fault("stall", after=3)], delay=0.01)
    async with through(ollama=ollama, page=page) as run:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3), await run.chat(stream=True) as response:
                await tokens(response, 3)


async def test_answers_are_the_same_whole_and_streamed(through: Through) -> None:
    async with through() as run:
        stream = await streamed(await run.chat(stream=True))
        response = await run.chat()
        assert stream.done and stream.text() == said(await whole(response))["content"]
        assert response.headers["x-gemmapy-model"] == "demo:latest" and response.headers["Server"].startswith("nginx")


async def test_an_error_keeps_its_status_and_message(through: Through) -> None:
    async with through("keys: {alice: right}\n" + BARE) as run:
        response = await run.chat()
        assert response.status == 401 and (await response.json())["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_disconnects_from_nginx_before_the_first_byte_stops_ollama(
    through: Through, stream: bool
) -> None:
    async with through(ollama=Simulator(faults=[Fault("stall")])) as run:
        asking = asyncio.ensure_future(run.chat(stream=stream))
        await run.ollama.until(lambda: run.ollama.running == 1)
        asking.cancel()
        await asyncio.wait([asking])
        await run.ollama.until_abandoned()


async def test_a_client_that_disconnects_from_nginx_during_a_stream_stops_ollama(through: Through) -> None:
    async with through(ollama=Simulator(faults=[STALLED])) as run:
        async with await run.chat(stream=True) as response:
            await tokens(response, 1)
        await run.ollama.until_abandoned()


async def test_a_reload_loses_no_stream_that_runs_through_nginx(through: Through) -> None:
    stall = Fault("stall", after=1, times=20, until=(go := asyncio.Event()))
    ollama = Simulator(faults=[stall], parallel=50, say=lambda body: WORDS)
    async with through(BARE, ollama) as run:
        streams = await asyncio.gather(*(run.chat(stream=True) for _ in range(10)))
        wholes = [asyncio.ensure_future(run.chat()) for _ in range(10)]
        await run.ollama.until(lambda: run.ollama.running == 20)
        run.configure("chains: {embeddings: []}")
        assert await run.server.reload()
        assert (await run.chat()).status == 404, "new calls use the new configuration"
        go.set()
        told = {(await streamed(stream)).text() for stream in streams}
        told |= {said(await whole(await answer))["content"] for answer in wholes}
        assert told == {"".join(WORDS.pieces)} and run.ollama.abandoned == 0


async def test_the_stock_client_works_through_nginx(through: Through) -> None:
    async with through("keys: {alice: right}\n" + BARE) as run, run.client(api_key="right") as client:
        answer = await client.chat.completions.create(**ASK)
        stream = await client.chat.completions.create(**ASK, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        vectors = await client.embeddings.create(model="demo-embed", input=["one", "two"])
        assert "".join(pieces) == answer.choices[0].message.content and len(vectors.data) == 2
        assert "demo:latest" in [model.id async for model in client.models.list()]


async def test_large_images_pass_through_nginx(through: Through) -> None:
    picture = data_url(PNG + bytes(3_000_000))
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": picture}}] * 2}
    body = io.BytesIO(json.dumps({"model": "demo-vision", "messages": [message]}).encode())
    async with through() as run:
        headers = {"Content-Type": "application/json"}
        response = await run.http.post(f"{run.url}/v1/chat/completions", data=body, headers=headers)
        assert "2 images" in said(await whole(response))["content"]
        (sent,) = asked(run.ollama)
        assert [len(image) for image in sent["messages"][0]["images"]] == [len(picture.partition(",")[2])] * 2
