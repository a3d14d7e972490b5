"""A cache whose Redis fails: calls are answered without it, and it is used again by itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.stores import breaker
from proxy.stores.redis import SPACE
from proxy.upstreams.demo import Simulator
from tests.conftest import Running, Start
from tests.servers import RedisServer, redis_server
from tests.whole.asking import settled, streamed, user


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with redis_server(tmp_path) as running:
        yield running


def config(server: RedisServer, timeout: float = 30) -> str:
    """A store with a long time limit, because the machine may be slow; tests of failures set a shorter one."""
    return (
        f"stores: {{shared: {{redis: '{server.url}', timeout: {timeout}}}}}\nplugins: {{cache: {{store: shared}}}}\n"
        "chains: {chat: [cache], embeddings: [cache]}\n"
    )


async def ask(run: Running, seed: int, stream: bool = False) -> str:
    """The cache's outcome, once the entry is written; checks that the answer is right."""
    outcome = await asked(run, seed, stream)
    await run.settled()
    return outcome


async def asked(run: Running, seed: int, stream: bool) -> str:
    response = await run.chat(seed=seed, messages=user(f"say {seed}"), stream=stream)
    assert response.status == 200
    if stream:
        assert f"say {seed}" in (await streamed(response)).text()
    else:
        assert f"say {seed}" in (await response.json())["choices"][0]["message"]["content"]
    return str(response.headers["x-gemmapy-cache"])


async def until_recovered(run: Running) -> None:
    """Wait until an answer is a hit from Redis again."""
    async with asyncio.timeout(30):
        while await ask(run, 100) != "hit":
            await settled(run)  # so that the next hit comes from Redis and not from the pending writes
            await asyncio.sleep(0.02)


async def test_two_servers_share_a_cache_in_redis(start: Start, server: RedisServer) -> None:
    async with start(config(server)) as one, start(config(server)) as other:
        text = config(server) + f"upstreams: {{local: {{ollama: '{upstream_of(one)}'}}}}\n"
        other.configure(text)
        assert await other.server.reload()
        assert await ask(one, 1) == "miss"
        await settled(one)
        assert await ask(other, 1) == "hit" and await ask(other, 1, stream=True) == "hit"


def upstream_of(run: Running) -> str:
    return run.server.config.upstreams["local"].urls[0]


@pytest.mark.parametrize("trouble", ["killed", "frozen"])
async def test_calls_are_answered_without_redis_and_use_it_again_later(
    start: Start, server: RedisServer, trouble: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "REST", 0.2)
    async with start(config(server, timeout=0.05)) as run:
        assert await ask(run, 99) == "miss"
        with caplog.at_level(logging.INFO, "proxy.stores.breaker"):
            server.kill() if trouble == "killed" else server.freeze()
            async with asyncio.timeout(30):
                assert {await ask(run, number, number % 2 == 0) for number in range(40)} == {"miss"}
            if trouble == "killed":
                await server.start()
            else:
                server.thaw()
            await until_recovered(run)
        assert len([text for text in caplog.messages if "go on without it" in text]) == 1
        told = await (await run.http.get(f"{run.url}/api/cache/stats")).json()
        assert told["errors"] > 0


async def test_killing_and_restarting_redis_under_load_fails_no_call(start: Start, server: RedisServer) -> None:
    stop = asyncio.Event()
    count = 0

    async with start(config(server, timeout=0.05), Simulator(parallel=64)) as run:

        async def caller(number: int) -> None:
            nonlocal count
            while not stop.is_set():
                await asked(run, (number * 7 + count) % 20, count % 2 == 0)
                count += 1

        async with asyncio.TaskGroup() as callers:
            for number in range(8):
                callers.create_task(caller(number))
            for _ in range(2):
                await asyncio.sleep(0.2)
                server.kill()
                await asyncio.sleep(0.2)
                await server.start()
            stop.set()
    assert count > 50


async def test_a_full_redis_caches_nothing_and_calls_are_answered(start: Start, tmp_path: Path) -> None:
    full = redis_server(tmp_path, "--maxmemory", "1", "--maxmemory-policy", "noeviction")
    async with full as server, start(config(server)) as run:
        for _ in range(10):
            assert await ask(run, 1) == "miss"
            await settled(run)


async def test_garbage_under_a_key_is_a_miss(start: Start, server: RedisServer) -> None:
    from redis.asyncio import Redis

    async with start(config(server)) as run, Redis(port=server.port) as client:
        assert await ask(run, 1) == "miss"
        await settled(run)
        (key,) = [one async for one in client.scan_iter(f"{SPACE}*")]
        value = await client.get(key)
        assert isinstance(value, bytes)
        for garbage in (b"", b"\x00" * 50, value[:-20], value[:10] + b"\xff" * 30, value.replace(b"Text", b"Tixt")):
            await client.set(key, garbage)
            assert await ask(run, 1) == "miss"
            await settled(run)
            assert await ask(run, 1) == "hit"


async def test_no_secret_of_the_url_is_revealed(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    text = "stores: {shared: {redis: 'redis://user:canary@127.0.0.1:9/0'}}\n"
    async with start(f"{text}plugins: {{cache: {{store: shared}}}}\nchains: {{chat: [cache]}}\n") as run:
        assert await ask(run, 1) == "miss"
        told = await (await run.http.get(f"{run.url}/api/cache/stats")).text()
    assert "canary" not in caplog.text + told and "127.0.0.1:9" in caplog.text
