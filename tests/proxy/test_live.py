from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from proxy.errors import ConfigError, NotFound, WrongMethod
from proxy.live import Router
from proxy.types import Route
from proxy.upstreams.demo import Fault, Simulator
from tests.conftest import ASK, BARE, Running, Start
from tests.whole.asking import dead_url

GUARDED = "plugins: {retry: {}, timeouts: {}}\nchains: {chat: [timeouts, retry], embeddings: []}\n"


async def test_reloading_under_load_loses_no_call(start: Start) -> None:
    lost: list[object] = []
    done = 0
    async with start(BARE, Simulator(delay=0.002)) as run:
        stop = asyncio.Event()

        async def hammer(keep_alive: bool, stream: bool) -> None:
            nonlocal done
            connector = aiohttp.TCPConnector(force_close=not keep_alive)
            async with aiohttp.ClientSession(connector=connector) as http:
                while not stop.is_set():
                    body = {**ASK, "stream": stream}
                    async with http.post(f"{run.url}/v1/chat/completions", json=body) as response:
                        text = await response.text()
                        if response.status != 200 or (stream and "[DONE]" not in text):
                            lost.append(text)
                        done += 1

        async with asyncio.TaskGroup() as tasks:
            for n in range(8):
                tasks.create_task(hammer(n % 2 == 0, n % 4 < 2))
            for n in range(10):
                run.configure(BARE if n % 2 else GUARDED)
                assert await run.server.reload()
                await asyncio.sleep(0.03)
            async with asyncio.timeout(20):
                while done <= 20:  # noqa: ASYNC110  (there is no event)
                    await asyncio.sleep(0.01)
            stop.set()
    assert lost == []


async def test_a_call_finishes_in_the_pipeline_it_started_in(start: Start) -> None:
    async with start(BARE, Simulator(faults=[Fault("stall", after=1, until=(go := asyncio.Event()))])) as run:
        answer = await run.chat(stream=True)
        old = run.server.live.pipeline
        run.configure("chains: {embeddings: []}\n")
        assert await run.server.reload()
        assert (await run.chat()).status == 404
        assert old.calls == 1
        go.set()
        assert "[DONE]" in await answer.text()
        await asyncio.wait_for(old.idle.wait(), 30)


async def test_an_invalid_file_changes_nothing_and_all_problems_are_reported(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    async with start() as run:
        run.configure("plugins:\n  cash: {}\n  retry: {attempts: 0}\nchains:\n  chat: [compare]\n")
        with caplog.at_level(logging.ERROR, "proxy.server"):
            assert not await run.server.reload()
        assert caplog.messages[:3] == [
            "proxy.yaml:2: plugins.cash: no plugin is called 'cash'; did you mean 'cache'?",
            "proxy.yaml:3: plugins.retry.attempts: Input should be greater than 0",
            "proxy.yaml:5: chains.chat.0: 'compare' is not under plugins; did you mean 'comparison'?",
        ]
        assert (await run.chat()).status == 200


KEPT = """chains: {chat: [usage, experiments, last]}
database: {url: 'sqlite:///DB'}
plugins: {usage: {pending: 10}, experiments: {pending: 10, max_units: 10}, last: {use: timeouts}}
upstreams: {far: {ollama: ['$OLLAMA'], load_timeout: 10, max_answer_bytes: 10}}
"""


def settings_in_use(run: Running) -> list[Any]:
    """Settings of objects that survive reloads."""
    state = run.server.services.state
    host = run.server.live.pipeline.value.upstreams["far"].states[0]
    listing, loader = state[f"model list {host.url}"], state[f"loader {host.url}"]
    usage, experiments = state["usage writer"], state["experiments writer"]
    bounds = [loader.load_timeout, loader.client.most, listing.client.most]
    return [host.name, *bounds, usage.most, experiments.most, experiments.most_units]


async def test_a_refused_reload_changes_no_setting(start: Start, tmp_path: Path) -> None:
    text = KEPT.replace("DB", str(tmp_path / "records.db"))
    other = text.replace("10", "20").replace("'$OLLAMA'", f"'$OLLAMA', '{dead_url()}'")
    async with start(text) as run:
        before = settings_in_use(run)
        assert before == ["far", *[10] * 6]
        run.configure(other.replace("use: timeouts", "use: 'tests.whole.rigged:Shut'"))
        assert not await run.server.reload()
        assert settings_in_use(run) == before
        run.configure(other)
        assert await run.server.reload()
        address = run.server.live.pipeline.value.upstreams["far"].states[0].url.removeprefix("http://")
        assert settings_in_use(run) == [f"far/{address}", *[20] * 6]


async def test_a_reload_can_remove_the_keys_of_a_server_on_loopback(start: Start) -> None:
    async with start("keys: {a: secret}\nchains: {chat: []}\n") as run:
        run.configure(BARE)  # no keys, which is allowed as the server listens on loopback
        assert await run.server.reload()
        assert (await run.chat()).status == 200


async def test_plugins_at_wrong_places_are_errors_with_their_lines(start: Start) -> None:
    text = "plugins:\n  retry: {}\nchains:\n  chat: [retry, retry]\n  embeddings: [retyr]\n"
    with pytest.raises(ConfigError) as caught:
        async with start(text):
            pass
    assert caught.value.problems == [
        "proxy.yaml:4: chains.chat.1: 'retry' is in this chain twice",
        "proxy.yaml:5: chains.embeddings.0: 'retyr' is not under plugins; did you mean 'retry'?",
    ]


async def test_the_router_distinguishes_unknown_paths_from_wrong_methods() -> None:
    from aiohttp.test_utils import make_mocked_request

    async def handle(request: object) -> None: ...

    router = Router([Route("GET", "/a", handle), Route("POST", "/b/{name}", handle)])  # type: ignore[arg-type]
    route, names = await router.find(make_mocked_request("POST", "/b/c"))
    assert (route.path, dict(names)) == ("/b/{name}", {"name": "c"})
    with pytest.raises(WrongMethod) as wrong:
        await router.find(make_mocked_request("PUT", "/a"))
    assert wrong.value.allowed == {"GET"}
    with pytest.raises(WrongMethod) as wrong:
        await router.find(make_mocked_request("GET", "/b/c"))
    assert wrong.value.allowed == {"POST"}
    with pytest.raises(NotFound):
        await router.find(make_mocked_request("GET", "/c"))


def test_the_packaged_configuration_is_found() -> None:
    from proxy.config import packaged

    assert packaged("proxy.yaml").read_text() == (Path(__file__).parents[2] / "config" / "proxy.yaml").read_text()


async def test_without_checkable_aliases_no_model_list_is_requested(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    dead = "upstreams: {a: {ollama: 'http://127.0.0.1:9'}}\nmodels: {gpt: {alias: nobody}}\nchains: {}"
    for text in ("chains: {}", dead):
        async with start(text) as run:
            await run.server.warn()
            assert not [one for one in run.ollama.seen if one.path == "/api/tags"]
    assert "alias" not in caplog.text and "listing" not in caplog.text
