"""One row per call, with either database."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from plugins.usage.retention import Retention
from plugins.usage.rows import AttemptRow, CallRow
from plugins.usage.tables import ATTEMPTS, CALLS, FEATURE, METADATA
from proxy.sql.database import Database
from proxy.upstreams.demo import Fault, Simulator
from tests.conftest import ASK, Start
from tests.plugins.usage.asking import KEYS, A, chat, config, get, rows, until, writer_of, written


def test_a_row_has_the_tables_columns_in_order() -> None:
    columns = [column.name for column in CALLS.columns]
    assert list(CallRow._fields) == columns[1:-2] and columns[-2:] == ["rating", "comment"]
    assert list(AttemptRow._fields) == [column.name for column in ATTEMPTS.columns][1:]


async def test_a_call_is_recorded_with_its_figures(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run:
        id = await chat(run, user="ann", metadata={"team": "blue"}, stream=True, stream_options={"include_usage": True})
        (row,) = await written(run, 1)
    expected = {
        "call": id, "caller": "alice", "route": "chat", "stream": 1, "asked": "demo", "model": "demo:latest",
        "upstream": "local", "cache": "miss", "attempts": 1, "finish": "stop", "error": "", "estimated": "",
        "client_user": "ann", "metadata": '{"team":"blue"}', "currency": "USD", "rating": 0,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert row["prompt_tokens"] > 0 and row["completion_tokens"] > 0 and row["eval_ns"] > 0
    assert 0 < row["first_ns"] <= row["total_ns"] and row["at"] > 1e15 and len(row["cache_key"]) == 32
    assert row["cost"] == round(row["prompt_tokens"] * 150 + row["completion_tokens"] * 600)
    assert row["cloud"] == row["prompt_tokens"] * 2500 + row["completion_tokens"] * 10_000
    busy = row["prompt_ns"] + row["eval_ns"]
    assert row["energy_mj"] == round((30_000 * row["load_ns"] + 250_500 * busy) / 1e9)


async def test_failed_cut_off_and_repeated_calls_are_recorded_too(start: Start, database_url: str) -> None:
    ollama = Simulator(faults=[Fault("eof", after=3)])
    async with start(config(database_url), ollama) as run:
        await chat(run, stream=True)
        await chat(run, model="nobody-has-it")
        await chat(run), await chat(run)
        found = await written(run, 4)
    cut, unknown, made, kept = found
    assert (cut["error"], cut["completion_tokens"], cut["finish"]) == ("upstream_cut", 3, "")
    assert set(cut["estimated"].split()) == {"prompt_tokens", "completion_tokens"}
    assert (unknown["error"], unknown["model"], unknown["prompt_tokens"], unknown["cost"]) == (
        "model_not_found", "", None, 0,
    )  # fmt: skip
    assert (made["cache"], kept["cache"], kept["cost"], kept["saved"]) == ("miss", "hit", 0, made["cost"])
    assert kept["energy_mj"] == 0 and kept["prompt_tokens"] == made["prompt_tokens"]


async def test_attempts_that_succeed_at_once_share_one_row(start: Start, database_url: str) -> None:
    """The rows of their calls already have the details."""
    async with start(config(database_url)) as run:
        for number in range(3):
            await chat(run, messages=[{"role": "user", "content": f"question {number}"}])
        await writer_of(run).flush()
        (row,) = await rows(writer_of(run).database, ATTEMPTS)
        told = await get(run, "/api/retry/stats")
    assert (row["times"], row["call"], row["caller"], row["number"], row["error"]) == (3, "", "alice", 1, "")
    assert (row["model"], row["upstream"]) == ("demo:latest", "local") and row["micros"] > 0
    assert (told["attempts"], told["failures"], told["retries"]) == (3, 0, 0)
    assert [(one["model"], one["attempts"]) for one in told["by_model"]] == [("demo:latest", 3)]


async def test_every_attempt_of_a_call_with_a_failure_has_a_row(start: Start, database_url: str) -> None:
    async with start(config(database_url), Simulator(faults=[Fault("status")])) as run:
        id = await chat(run)
        (row,) = await written(run, 1)
        tries = await rows(writer_of(run).database, ATTEMPTS)
        told = await (
            await run.http.get(f"{run.url}/api/retry/stats?hours=1000", headers={"Authorization": "Bearer o-key"})
        ).json()
    assert row["attempts"] == 2
    assert [(one["call"], one["number"], one["error"]) for one in tries] == [(id, 1, "upstream_server"), (id, 2, "")]
    assert (told["attempts"], told["failures"], told["successes_after_retry"]) == (2, 1, 1)
    assert told["errors"] == {"upstream_server": 1}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_disconnects_is_recorded(start: Start, database_url: str, stream: bool) -> None:
    async with start(config(database_url), Simulator(faults=[Fault("stall", after=2)])) as run:
        body = json.dumps({**ASK, "stream": stream, "max_tokens": 500})
        response = run.http.post(
            f"{run.url}/v1/chat/completions", data=body, headers={**A, "Content-Type": "application/json"}
        )
        if stream:
            answer = await response
            await answer.content.readany()
            answer.close()
        else:
            asking = asyncio.ensure_future(response)
            await run.ollama.until(lambda: run.ollama.running == 1)
            asking.cancel()
        (row,) = await written(run, 1)
    assert row["error"] == "client_left"


async def test_a_call_cut_off_by_shutdown_is_recorded_as_a_failure(start: Start, tmp_path: Path) -> None:
    text = config(f"sqlite:///{tmp_path / 'r.db'}") + "listen: {port: 0, drain: 0}\n"
    async with start(text, Simulator(faults=[Fault("stall", after=2)])) as run:
        answer = await run.http.post(f"{run.url}/v1/chat/completions", json={**ASK, "stream": True}, headers=A)
        await answer.content.readany()
    async with start(text) as run:
        (row,) = await rows(writer_of(run).database)
        told = await get(run, "/api/metrics/dashboard")
    assert row["error"] == "server_stopped"
    assert (told["total_requests"], told["errors"], told["client_left"]) == (1, 1, 0)


async def test_an_attempt_cancelled_by_its_client_has_a_row_and_is_not_a_failure(
    start: Start, database_url: str
) -> None:
    async with start(config(database_url), Simulator(faults=[Fault("stall")])) as run:
        asking = asyncio.ensure_future(chat(run))
        await run.ollama.until(lambda: run.ollama.running == 1)
        asking.cancel()
        (row,) = await written(run, 1)
        await run.ollama.until(lambda: run.ollama.running == 0)
        told = await get(run, "/api/retry/stats")
        (one,) = await rows(writer_of(run).database, ATTEMPTS)
    assert (one["call"], one["error"], one["model"], one["number"]) == (row["call"], "client_left", "demo:latest", 1)
    assert (told["attempts"], told["failures"], told["broken_off"], told["failure_rate"]) == (1, 0, 1, None)
    assert row["attempts"] == 1 and row["prompt_tokens"] and told["errors"] == {}


async def test_a_forbidden_call_is_recorded_without_costs(start: Start, tmp_path: Path) -> None:
    keys = "keys: {alice: {key: a-key, models: [demo], routes: [chat]}, ops: {key: o-key, role: admin}}\n"
    text = config(f"sqlite:///{tmp_path / 'r.db'}").replace(KEYS, keys)
    async with start(text) as run:
        for path, body in {
            "/v1/chat/completions": {**ASK, "model": "demo-thinking", "user": "ann"},
            "/api/chat": {**ASK, "model": "demo-thinking"},
            "/v1/responses": {"model": "demo-thinking", "input": "hi"},
            "/v1/completions": {"model": "demo", "prompt": "hi"},
            "/api/embed": {"model": "demo-embed", "input": "hi"},
        }.items():
            assert (await run.http.post(run.url + path, json=body, headers=A)).status == 403, path
        await chat(run)
        found = await written(run, 6)
        assert (await get(run, "/api/metrics/dashboard"))["total_requests"] == 6
    told = [(row["caller"], row["route"], row["error"], row["attempts"], row["prompt_tokens"]) for row in found[:5]]
    assert told == [
        *[("alice", "chat", "model_not_allowed", 0, None)] * 3,
        *[("alice", route, "route_not_allowed", 0, None) for route in ("completions", "embeddings")],
    ]
    assert (found[0]["client_user"], found[0]["asked"], found[0]["model"]) == ("ann", "demo-thinking", "")


async def test_unusual_values_of_a_client_do_not_prevent_a_row(start: Start, database_url: str) -> None:
    strange: list[dict[str, Any]] = [
        {"user": "nul \0 and \ud83d\ude00"},
        {"metadata": {"a": "b\0c"}},
        {"model": "x" * 300 + "\0"},
        {"metadata": {f"{number:064}": "y" * 512 for number in range(16)}},
    ]
    async with start(config(database_url)) as run:
        for body in strange:
            await chat(run, **body)
        found = await written(run, 4)
        await until(lambda: writer_of(run).pending == 0)
        assert writer_of(run).lost == 0
    assert "\0" not in found[0]["client_user"] and len(found[2]["asked"]) == 200
    assert len(found[3]["metadata"]) < 100


async def test_the_migrations_create_the_tables_that_the_code_uses(new_database_url: str) -> None:
    database = Database(new_database_url, 1, 10)
    await database.migrate(FEATURE)
    async with database.reading() as connection:
        found = await connection.run_sync(lambda sync: compare_metadata(MigrationContext.configure(sync), METADATA))
    await database.aclose()
    names = {table.name for table in METADATA.tables.values()}
    assert [one for one in found if not (one[0] == "remove_table" and one[1].name not in names)] == []


async def test_old_rows_are_deleted_even_after_a_failure(start: Start, tmp_path: Path, monkeypatch: Any) -> None:
    async def tidy(self: Retention) -> None:
        tries.append(1)
        raise ValueError("once")

    tries = list[int]()
    monkeypatch.setattr(Retention, "tidy", tidy)
    monkeypatch.setattr("plugins.usage.plugin.TIDY", 0.01)
    async with start(config(f"sqlite:///{tmp_path / 'records.db'}")):
        await until(lambda: len(tries) > 2)


async def test_callers_with_a_common_long_prefix_are_distinct(start: Start, database_url: str) -> None:
    head = "identity_header: {user: x-user}\nlisten: {port: 0, drain: 1, trusted_proxies: ['127.0.0.1']}\n"
    async with start(config(database_url, head)) as run:
        long = "a" * 200
        (mine, other) = {"x-user": f"{long}b"}, {"x-user": long}
        id = await chat(run, mine)
        await written(run, 1)
        told = [(await get(run, "/api/metrics/dashboard", who))["total_requests"] for who in (mine, other)]
        rated = [
            (await run.http.post(f"{run.url}/v1/feedback", json={"request_id": id, "rating": 1}, headers=who)).status
            for who in (other, mine)
        ]
    assert (told, rated) == ([1, 0], [404, 200])


async def test_cached_embeddings_cost_nothing(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run:
        for texts in (["some words", "others"], ["some words", "others", "and new ones", "and new ones"]):
            body = {"model": "demo-embed", "input": texts}
            await (await run.http.post(f"{run.url}/v1/embeddings", json=body, headers=A)).read()
        first, second = await written(run, 2)
    new = (second["prompt_tokens"] - first["prompt_tokens"]) // 2
    assert new > 0 and second["cost"] == new * 150
    assert second["cost"] + second["saved"] == second["prompt_tokens"] * 150
