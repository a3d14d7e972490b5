"""What Prometheus reads from a running server."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from math import isnan
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.upstreams.demo import Fault, Simulator
from tests.conftest import ASK, Running, Start
from tests.servers import redis_server
from tests.whole.asking import error_of, streamed
from tests.whole.commands import Serving, served

CONFIG = "plugins: {metrics: {}, cache: {}, retry: {wait: 0}}\n"
CHAIN = "chains: {chat: [metrics, cache, retry], embeddings: [metrics, cache, retry]}\n"
WORKERS = (
    "listen: {port: 0, drain: 1, workers: 2}\nupstreams: {demo: {demo: {}}}\nplugins: {metrics: {}}\n"
    "chains: {chat: [metrics]}\n"
)
Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    return {
        (one.name, frozenset(one.labels.items())): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def total(found: Samples, name: str, **labels: str) -> float:
    """The sum of all series with these labels."""
    return sum(value for (one, told), value in found.items() if one == name and set(labels.items()) <= told)


async def scraped(url: str) -> Samples:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as response:
        assert response.status == 200 and response.content_type == "text/plain"
        return samples(await response.text())


async def scraped_of(run: Running) -> Samples:
    await run.settled()
    return await scraped(run.url)


async def test_every_call_is_counted_with_its_tokens_and_times(start: Start) -> None:
    async with start(CONFIG + CHAIN) as run:
        answers = [await (await run.chat(seed=seed)).json() for seed in (1, 2)]
        assert (await streamed(await run.chat(seed=3, stream=True))).done
        assert (await run.embed()).status == 200
        found = await scraped_of(run)
    chat = {"gen_ai_operation_name": "chat", "gen_ai_response_model": "demo:latest"}
    chat["gen_ai_provider_name"] = "ollama"
    assert total(found, "gemmapy_calls_total", route="chat", model="demo:latest", outcome="ok", cache="miss") == 3
    assert total(found, "gemmapy_calls_total", route="embeddings") == 1
    assert total(found, "gemmapy_tokens_total", route="chat", type="output") == sum(
        answer["usage"]["completion_tokens"] for answer in (*answers, answers[0])
    )
    assert total(found, "gen_ai_client_token_usage_count", gen_ai_token_type="input", **chat) == 3
    for name in ("request_duration_seconds", "time_to_first_token_seconds", "time_per_output_token_seconds"):
        assert total(found, f"gen_ai_server_{name}_count", **chat) == 3, name
    assert total(found, "gemmapy_calls_in_flight") == 0
    assert total(found, "process_resident_memory_bytes") > 0


async def test_hits_failures_and_attempts_have_separate_metrics(start: Start) -> None:
    async with start(CONFIG + CHAIN, Simulator(faults=[Fault("status", times=4)])) as run:
        assert (await run.chat()).status == 502
        assert (await run.chat()).status == 200
        assert (await run.chat()).headers["x-gemmapy-cache"] == "hit"
        found = await scraped_of(run)
    assert total(found, "gemmapy_calls_total", outcome="error") == 1
    assert total(found, "gemmapy_calls_total", outcome="ok", cache="hit") == 1
    assert total(found, "gemmapy_errors_total", route="chat", code="upstream_server") == 1
    assert total(found, "gemmapy_attempts_total", outcome="error") == 4
    assert total(found, "gemmapy_attempts_total", outcome="ok") == 1


async def test_made_up_model_names_do_not_create_series(start: Start) -> None:
    async with start(CONFIG + CHAIN) as run:
        for number in range(5):
            assert (await run.chat(model=f"made-up-{number}")).status == 404
        found = await scraped_of(run)
    assert total(found, "gemmapy_calls_total", model="other", outcome="error") == 5
    assert not any("made-up" in str(labels) for _, labels in found)


async def test_calls_in_flight_are_reported_and_a_reload_keeps_all_counts(start: Start) -> None:
    stall = Fault("stall", after=1, until=(go := asyncio.Event()))
    async with start(CONFIG + CHAIN, Simulator(faults=[stall])) as run:
        response = await run.chat(stream=True)
        assert total(await scraped(run.url), "gemmapy_calls_in_flight", route="chat") == 1
        assert await run.server.reload()
        go.set()
        assert (await streamed(response)).done
        assert (await run.chat(seed=1)).status == 200
        found = await scraped_of(run)
        assert total(found, "gemmapy_calls_total") == 2
        assert total(found, "gemmapy_calls_in_flight", route="chat") == 0


@pytest.mark.parametrize(("who", "statuses"), [("admin", (401, 403)), ("user", (401, 200)), ("public", (200, 200))])
async def test_access_to_metrics_is_configurable(start: Start, who: str, statuses: tuple[int, int]) -> None:
    text = f"keys: {{ann: a-key}}\nplugins: {{metrics: {{who: {who}}}}}\nchains: {{chat: [metrics]}}\n"
    async with start(text) as run:
        nobody = await run.http.get(f"{run.url}/metrics")
        ann = await run.http.get(f"{run.url}/metrics", headers={"Authorization": "Bearer a-key"})
        assert (nobody.status, ann.status) == statuses
        if who == "admin":
            assert (await error_of(ann, 403))["code"] == "insufficient_permissions"


async def test_the_format_is_negotiated(start: Start) -> None:
    async with start(CONFIG + CHAIN) as run:
        accepted = {"Accept": "application/openmetrics-text; version=1.0.0"}
        response = await run.http.get(f"{run.url}/metrics", headers=accepted)
        assert response.content_type == "application/openmetrics-text"
        assert (await response.text()).endswith("# EOF\n")


async def asked(serving: Serving, count: int) -> None:
    async def one() -> None:
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{serving.url}/v1/chat/completions", json=ASK) as answer,
        ):
            assert answer.status == 200 and await answer.read()

    await asyncio.gather(*(one() for _ in range(count)))


async def test_workers_count_together_and_a_dead_ones_counts_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(WORKERS)
    async with served("serve", "--config", str(path)) as serving:
        if len(re.findall("is ready", serving.banner)) < 2:
            await serving.until("is ready")
        await asked(serving, 20)
        for _ in range(4):  # so that every worker is likely to be scraped
            assert total(await scraped(serving.url), "gemmapy_calls_total") == 20
        pid = int(re.findall(r"is ready \(process (\d+)\)", serving.banner)[0])
        os.kill(pid, signal.SIGKILL)
        await serving.until("is ready")
        assert total(await scraped(serving.url), "gemmapy_calls_total") == 20
        await asked(serving, 10)
        for _ in range(4):
            found = await scraped(serving.url)
            assert total(found, "gemmapy_calls_total") == 30
            assert total(found, "gemmapy_calls_in_flight") == 0


def store_states(found: Samples) -> dict[str, float]:
    return {dict(labels)["store"]: value for (name, labels), value in found.items() if name == "gemmapy_store_up"}


KEPT = (
    "database: {{url: 'sqlite:///{folder}/records.db', timeout: 0.2}}\nstores: {{shared: {{redis: '{redis}'}}}}\n"
    "plugins: {{metrics: {{}}, conversations: {{}}, cache: {{store: shared}}}}\n"
    "chains: {{chat: [metrics, conversations, cache]}}\n"
)


async def test_a_stores_failure_and_recovery_are_reported(start: Start, tmp_path: Path) -> None:
    async with redis_server(tmp_path) as redis:
        config = KEPT.format(folder=tmp_path, redis=redis.url)
        async with start(config) as run:

            async def away() -> list[str]:
                ready = await run.http.get(f"{run.url}/readyz")
                assert ready.status == 200
                return list((await ready.json())["away"])

            assert (await run.chat(conversation="a")).status == 200
            assert store_states(await scraped_of(run)) == {"database": 1, "shared": 1} and await away() == []
            redis.kill()
            with closing(sqlite3.connect(tmp_path / "records.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                assert (await run.chat(conversation="a")).status == 503
            assert (await run.chat(seed=2)).status == 200
            assert store_states(await scraped_of(run)) == {"database": 0, "shared": 0}
            assert sorted(await away()) == ["database", "shared"]
            await redis.start()
            async with asyncio.timeout(20):
                # A busy machine may take longer for one operation than the store may.
                while await away() or store_states(await scraped_of(run)) != {"database": 1, "shared": 1}:
                    assert (await run.chat(conversation="a", seed=3)).status == 200
            run.configure(config.replace("shared", "renamed"))
            await run.server.reload()
            assert isnan(store_states(await scraped_of(run))["shared"])


async def test_of_several_workers_the_latest_observation_of_a_store_counts(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    async with redis_server(tmp_path) as redis:
        stores = f"stores: {{shared: {{redis: '{redis.url}'}}}}\n"
        path.write_text(
            stores
            + WORKERS.replace("{metrics: {}}", "{metrics: {}, cache: {store: shared}}").replace("s]", "s, cache]")
        )
        async with served("serve", "--config", str(path)) as serving:
            for up in (1, 0, 1):
                if not up:
                    redis.kill()
                elif redis.process is None:
                    await redis.start()
                async with asyncio.timeout(60):
                    for _ in range(3):  # so that every worker is likely to be scraped
                        while store_states(await scraped(serving.url)) != {"shared": up}:
                            await asked(serving, 2)
                            await asyncio.sleep(0.2)
