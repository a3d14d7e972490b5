"""Statistics of calls: users see their own, admins all, and they add up."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.usage.export import Export
from plugins.usage.retention import Retention
from plugins.usage.rows import CallRow, call_row
from plugins.usage.tables import ATTEMPTS, CALLS, SUMS
from plugins.usage.writer import Batch
from proxy.announcements import CallEnded
from proxy.host import Clock
from proxy.sql.database import DatabaseAway
from proxy.upstreams.demo import Fault, Simulator
from tests.conftest import Running, Start
from tests.plugins.usage.asking import OPS, A, B, chat, config, get, rows, writer_of, written

DAY = 86_400


@pytest.fixture
async def run(start: Start, database_url: str) -> AsyncIterator[Running]:
    ollama = Simulator(faults=[Fault("status")])
    async with start(config(database_url, chain="usage, cache"), ollama) as run:
        await chat(run, A, model="demo-thinking"), await chat(run, A, model="demo-thinking")
        await chat(run, A), await chat(run, A), await chat(run, B), await chat(run, B, model="none")
        await written(run, 6)
        yield run


async def test_admins_see_all_callers_on_the_dashboard(run: Running) -> None:
    told = await get(run, "/api/metrics/dashboard?days=7")
    assert (told["total_requests"], told["errors"], told["cache_hits"]) == (6, 2, 1)
    assert float(told["error_rate"]) == 0.3333 and float(told["cache_hit_rate"]) == 0.25
    assert told["total_tokens"] == told["prompt_tokens"] + told["completion_tokens"] > 0
    assert 0 < told["duration"]["p50"] <= told["duration"]["p90"] <= told["duration"]["p99"]
    assert 0 < told["first_token"]["p50"] <= told["duration"]["p99"] and told["avg_tokens_per_sec"] > 0
    shares = {one["model"]: (one["requests"], float(one["share"])) for one in told["by_model"]}
    assert shares == {"demo:latest": (3, 0.5), "demo-thinking:latest": (2, 0.3333), None: (1, 0.1667)}
    assert (told["lost"], told["pending"], told["user"]) == (0, 0, None)
    assert (told["worker"], told["workers"]) == (0, 1)


async def test_users_see_only_their_own_calls(run: Running) -> None:
    mine = await get(run, "/api/metrics/dashboard", B)
    assert (mine["total_requests"], mine["user"], "lost" in mine) == (2, "bob", False)
    assert (await get(run, "/api/metrics/dashboard?user=bob", B)) == mine
    assert (await get(run, "/api/metrics/dashboard?user=bob"))["total_requests"] == 2
    for path in ("dashboard", "timeseries", "models", "endpoints", "errors", "export.csv"):
        refused = await get(run, f"/api/metrics/{path}?user=alice", B, 403)
        assert refused["error"]["code"] == "insufficient_permissions"


@pytest.mark.parametrize(("bucket", "points"), [("minute", 1440), ("hour", 24), ("day", 1)])
async def test_a_series_has_a_point_for_each_bucket(run: Running, bucket: str, points: int) -> None:
    told = await get(run, f"/api/metrics/timeseries?bucket={bucket}&days=1&model=demo:latest")
    assert len(told["points"]) == points
    assert sum(one["total_requests"] for one in told["points"]) == 3
    mine = await get(run, f"/api/metrics/timeseries?bucket={bucket}&days=1&model=demo:latest", B)
    assert sum(one["total_requests"] for one in mine["points"]) == 1


async def test_by_model_by_endpoint_and_by_error(run: Running) -> None:
    models = await get(run, "/api/metrics/models")
    assert {one["model"]: one["total_requests"] for one in models["models"]}["demo:latest"] == 3
    (endpoint,) = (await get(run, "/api/metrics/endpoints"))["endpoints"]
    assert (endpoint["endpoint"], endpoint["total_requests"]) == ("chat", 6)
    errors = await get(run, "/api/metrics/errors")
    assert (errors["errors"], errors["total_requests"]) == (2, 6)
    kinds = {one["error"]: one["requests"] for one in errors["kinds"]}
    assert kinds == {"upstream_server": 1, "model_not_found": 1}


async def test_calls_of_unknown_models_have_null_as_their_model(run: Running) -> None:
    since = run.server.services.clock.time() - 3600
    told = [
        (await get(run, "/api/metrics/models"))["models"],
        (await get(run, "/api/metrics/dashboard"))["by_model"],
        (await get(run, "/api/costs/summary"))["breakdown"],
        (await get(run, "/api/costs/breakdown?by=model"))["rows"],
        (await get(run, f"/v1/organization/usage/completions?start_time={since:.0f}&group_by=model"))["data"][-1][
            "results"
        ],
    ]
    names = [{one["model"] for one in rows} for rows in told]
    assert None in names[0] and names == [names[0]] * len(told)


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("metrics/dashboard?days=0", "days"), ("metrics/dashboard?days=x", "days"),
        ("metrics/dashboard?days=4000", "days"), ("metrics/dashboard?dais=7", "dais"),
        ("metrics/timeseries?bucket=year", "bucket"), ("metrics/timeseries?bucket=minute&days=2", None),
        ("costs/summary?period=year", "period"), ("costs/summary?from=2026-02-01&to=2026-01-01", None),
        ("costs/summary?from=yesterday", "from"), ("costs/breakdown?by=colour", "by"),
        ("metrics/export.csv?from=x", "from"),
    ],
)  # fmt: skip
async def test_an_invalid_parameter_is_named_in_the_error(run: Running, path: str, param: str | None) -> None:
    assert (await get(run, f"/api/{path}", status=400))["error"]["param"] == param


async def test_the_export_has_one_line_per_call_and_no_formulas(run: Running) -> None:
    await chat(run, A, user="=cmd()", metadata={"a": "b"})
    await written(run, 7)
    response = await run.http.get(f"{run.url}/api/metrics/export.csv", headers=OPS)
    assert response.content_type == "text/csv" and response.headers["x-request-id"]
    lines = list(csv.DictReader(io.StringIO(await response.text())))
    assert len(lines) == 7 and lines[-1]["client_user"] == "'=cmd()" and lines[-1]["metadata"] == '{"a":"b"}'
    assert lines[1]["model"] == "demo-thinking:latest" and float(lines[1]["tokens_per_second"]) > 0
    mine = await run.http.get(f"{run.url}/api/metrics/export.csv", headers=B)
    assert {one["caller"] for one in csv.DictReader(io.StringIO(await mine.text()))} == {"bob"}
    past = await run.http.get(f"{run.url}/api/metrics/export.csv?from=2020-01-01&to=2020-12-31", headers=OPS)
    assert len((await past.text()).splitlines()) == 1


async def test_an_export_is_read_in_chunks(run: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugins.usage.export.CHUNK", 2)
    response = await run.http.get(f"{run.url}/api/metrics/export.csv", headers=OPS)
    lines = list(csv.DictReader(io.StringIO(await response.text())))
    assert [one["call"] for one in lines] == [one["call"] for one in await rows(writer_of(run).database)]


def at(day: float, number: int = 1) -> CallRow:
    ended = CallEnded(f"r{number}", day * DAY, "alice", "", "chat", False, "m", "m", "local", 5, 7)
    return call_row(ended, "m")


async def test_old_rows_are_deleted_and_daily_sums_stay(run: Running) -> None:
    now = datetime.now(UTC).timestamp() / DAY
    database = writer_of(run).database
    await writer_of(run).put(Batch([at(now - 40, number) for number in range(5)] + [at(now - 3), at(now - 1)]))
    await Retention(30, database, Clock()).tidy()
    kept = await rows(database, CALLS)
    assert len(kept) == 6 + 2 and await rows(database, ATTEMPTS) == []
    limit = (now - 35) * DAY * 1e6
    old = {span: [one["calls"] for one in await rows(database, SUMS[span]) if one["start"] < limit] for span in SUMS}
    assert old == {60: [], 3600: [], DAY: [5, 5]}
    assert (await get(run, "/api/metrics/dashboard?days=60"))["total_requests"] == 6 + 7
    assert min(one["start"] for one in await rows(database, SUMS[60])) >= (now - 2.01) * DAY * 1e6


async def test_old_rows_go_in_several_transactions(run: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugins.usage.retention.CHUNK", 2)
    now, database = datetime.now(UTC).timestamp() / DAY, writer_of(run).database
    before = len(await rows(database, CALLS))
    await writer_of(run).put(Batch([at(now - 40, number) for number in range(7)]))
    deleted: list[int] = []

    async def noted(connection: AsyncConnection) -> None:
        deleted.append(len((await connection.execute(select(CALLS.c.id))).all()) - before)

    monkeypatch.setattr("plugins.usage.retention.alone", noted)
    await Retention(30, database, Clock()).tidy()
    assert len(await rows(database, CALLS)) == before
    assert [left for index, left in enumerate(deleted) if index == 0 or left != deleted[index - 1]] == [7, 5, 3, 1, 0]


# --- ratings ---------------------------------------------------------------------------------------


async def rate(run: Running, who: dict[str, str], id: str, **body: Any) -> int:
    response = await run.http.post(f"{run.url}/api/metrics/{id}/rate", json=body, headers=who)
    return response.status


async def test_a_rating_counts_once_and_can_change(run: Running) -> None:
    id = await chat(run, B)
    for rating in ("up", "up", "down", -1, 0, 1):
        assert await rate(run, B, id, rating=rating, comment="so so") == 200
    for who, caller in ((B, None), (OPS, None), (OPS, "bob")):
        told = await get(run, f"/api/metrics/dashboard{f'?user={caller}' if caller else ''}", who)
        assert (told["satisfaction"]["up"], told["satisfaction"]["down"]) == (1, 0)
    (row,) = [one for one in await rows(writer_of(run).database) if one["call"] == id]
    assert (row["rating"], row["comment"]) == (1, "so so")


async def test_only_the_callers_own_calls_can_be_rated(run: Running) -> None:
    id = await chat(run, A)
    assert [await rate(run, who, id, rating="up") for who in (B, OPS)] == [404, 404]
    assert await rate(run, A, "never", rating="up") == 404
    assert await rate(run, A, id, rating="great") == 400 and await rate(run, A, id) == 400


async def test_a_thumbs_down_removes_the_answer_from_the_cache(run: Running) -> None:
    id = await chat(run, A, seed=1)
    await chat(run, A, seed=1)
    body = {"request_id": id, "rating": "down"}
    response = await run.http.post(f"{run.url}/v1/feedback", json=body, headers=A)
    assert await response.json() == body
    async with asyncio.timeout(30):
        while (await written(run))[-1]["cache"] != "miss":
            await chat(run, A, seed=1)
    assert [one["cache"] for one in await rows(writer_of(run).database)][6:8] == ["miss", "hit"]


async def test_of_calls_with_one_request_id_the_newest_is_rated(run: Running) -> None:
    for _ in range(2):
        await (await run.http.post(f"{run.url}/v1/embeddings", json={"model": "demo-embed", "input": "x"},
                                   headers={**A, "x-request-id": "mine"})).read()  # fmt: skip
    assert await rate(run, A, "mine", rating="up") == 200
    assert [one["rating"] for one in await rows(writer_of(run).database) if one["call"] == "mine"] == [0, 1]


async def test_an_export_that_cannot_begin_is_a_503_and_one_that_fails_later_is_cut_off(
    run: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def some(self: Export, *asked: Any) -> Any:
        if not left:
            raise DatabaseAway("gone")
        left.pop()
        return await whole(self, *asked)

    left, whole = [0], Export.some
    monkeypatch.setattr(Export, "some", some)
    async with asyncio.timeout(20):
        with pytest.raises(aiohttp.ClientPayloadError):
            await (await run.http.get(f"{run.url}/api/metrics/export.csv", headers=OPS)).text()
        told = await get(run, "/api/metrics/export.csv", status=503)
    assert told["error"]["code"] == "database_unavailable"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/metrics/dashboard?model=a%00b", 400),
        ("/api/metrics/export.csv?user=a%00b", 400),
        ("/v1/organization/usage/completions?start_time=0&user_ids[]=a%00b", 400),
        ("/api/costs/summary?from=0001-01-01&to=0001-01-02", 200),
    ],
)
async def test_unusual_parameters_cause_no_server_error(run: Running, path: str, status: int) -> None:
    await get(run, path, status=status)


async def test_unusual_names_cause_no_server_error(run: Running) -> None:
    rated = await run.http.post(f"{run.url}/v1/feedback", json={"request_id": "a\0b", "rating": 1}, headers=A)
    also = await run.http.post(f"{run.url}/api/metrics/a%00b/rate", json={"rating": 1}, headers=A)
    assert (rated.status, also.status) == (404, 404)
    for prices in ({"a\0b": {"input": 1}}, {"a": {"input": 1, "like": "a\0b"}}):
        priced = await run.http.put(f"{run.url}/api/admin/costs/pricing", json={"models": prices}, headers=OPS)
        assert priced.status == 400


@pytest.mark.parametrize("name", ["demo", "demo:latest", "cheap"])
async def test_a_model_can_be_selected_by_any_of_its_names(start: Start, database_url: str, name: str) -> None:
    async with start(config(database_url, "models: {cheap: {alias: demo}}\n")) as run:
        await chat(run), await chat(run, model="cheap"), await chat(run, model="demo-thinking")
        await written(run, 3)
        for path in ("dashboard?", "timeseries?bucket=day&days=1&"):
            told = await get(run, f"/api/metrics/{path}model={name}", A)
            assert sum(one["total_requests"] for one in told.get("points", [told])) == 2
        since = int(run.server.services.clock.time()) - DAY
        used = await get(run, f"/v1/organization/usage/completions?start_time={since}&models={name}")
        assert [one["num_model_requests"] for bucket in used["data"] for one in bucket["results"]] == [2]
