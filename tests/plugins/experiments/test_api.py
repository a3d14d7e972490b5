"""The endpoints of experiments: permissions, states, and results reported by callers."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from plugins.experiments.recording import MOST
from plugins.experiments.tables import METRICS, UNITS
from tests.conftest import Running, Start
from tests.plugins.experiments.asking import (
    OPS,
    TONE,
    A,
    B,
    arm,
    ask,
    chat,
    config,
    flushed,
    ok,
    user_of,
    writer_of,
)
from tests.whole.asking import error_of


@pytest.fixture
async def run(start: Start, database_url: str) -> AsyncIterator[Running]:
    async with start(config(database_url, {"filed": {**TONE, "match": {"models": "nobody"}}})) as running:
        yield running


async def test_the_life_of_an_experiment_from_draft_to_deletion(run: Running) -> None:
    made = await ok(run, "POST", "", name="tone", description="Does it help?", **TONE)
    assert (made["status"], made["source"], made["unit"], made["started_at"]) == ("draft", "api", "user", None)
    assert made["id"].startswith("exp_") and arm(await chat(run)) is None
    changed = await ok(run, "PUT", f"/{made['id']}", unit="caller", traffic=0.5)
    assert (changed["unit"], changed["traffic"], changed["description"]) == ("caller", 0.5, "Does it help?")
    await ok(run, "PUT", "/tone", unit="user", traffic=1)
    began = await ok(run, "POST", "/tone/start")
    assert began["status"] == "active" and began["started_at"] > 1e9
    assert await ok(run, "POST", "/tone/start") == began, "starting it again changes nothing"
    assert str(arm(await chat(run))).startswith("tone=")
    await ok(run, "POST", "/tone/pause")
    assert arm(await chat(run)) is None
    assert (await ok(run, "POST", "/tone/start"))["started_at"] == began["started_at"]
    assert (await ok(run, "POST", "/tone/stop"))["stopped_at"] > 1e9
    for verb in ("start", "pause"):
        error = await error_of(await ask(run, "POST", f"/tone/{verb}"), 409)
        assert error["code"] == "experiment_status" and "final" in error["message"]
    assert sum(one["calls"] for one in (await ok(run, "GET", "/tone/results"))["variants"]) == 1
    assert (await ok(run, "DELETE", "/tone"))["deleted"] is True
    assert (await error_of(await ask(run, "GET", "/tone/results"), 404))["code"] == "experiment_not_found"
    async with writer_of(run).store.database.reading() as connection:
        assert (await connection.execute(select(UNITS))).all() == []


async def test_a_started_experiment_cannot_be_changed(run: Running) -> None:
    await ok(run, "POST", "", name="tone", **TONE)
    await ok(run, "POST", "/tone/start")
    weighed = [{**one, "weight": 3} for one in TONE["variants"]]
    for body, words in (
        ({"variants": weighed}, "it has begun"), ({"unit": "caller"}, "it has begun"), ({"salt": "x"}, "it has begun"),
        ({"match": {"models": "x"}}, "it has begun"), ({"name": "other"}, "it has begun"),
        ({"traffic": 0.5}, "would bias"),
    ):  # fmt: skip
        error = await error_of(await ask(run, "PUT", "/tone", **body), 409)
        assert (error["param"], error["code"]) == (next(iter(body)), "experiment_fixed") and words in error["message"]
    assert (await ok(run, "PUT", "/tone", description="Now.", variants=TONE["variants"]))["description"] == "Now."
    await ok(run, "POST", "/tone/pause")
    assert (await ok(run, "PUT", "/tone", traffic=0.5))["traffic"] == 0.5
    assert (await ask(run, "PUT", "/tone", variants=weighed)).status == 409
    await ok(run, "POST", "/tone/start")
    assert (await error_of(await ask(run, "DELETE", "/tone"), 409))["code"] == "experiment_active"
    await ok(run, "POST", "/tone/stop")
    assert (await ask(run, "PUT", "/tone", better={"tickets": "lower"})).status == 409


async def test_a_stopped_draft_cannot_be_started(run: Running) -> None:
    await ok(run, "POST", "", name="tone", **TONE)
    await ok(run, "POST", "/tone/stop")
    assert (await ask(run, "POST", "/tone/start")).status == 409
    found = await ok(run, "GET", "/tone")
    assert found["started_at"] is None and found["status"] == "stopped"


async def test_names_are_unique_and_lists_are_paged(run: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b", "c", "a"):
        await ok(run, "POST", "", name=name, **TONE)
    for name in ("a", "filed"):
        assert (await error_of(await ask(run, "POST", "", name=name, **TONE), 409))["code"] == "experiment_exists"
    assert (await error_of(await ask(run, "PUT", "/b", name="a"), 409))["code"] == "experiment_exists"
    assert (await ok(run, "PUT", "/b", name="d"))["name"] == "d"
    monkeypatch.setattr("plugins.experiments.store.MOST", 3)
    error = await error_of(await ask(run, "POST", "", name="e", **TONE), 400)
    assert error["code"] == "too_many_experiments"
    page = await ok(run, "GET", "?limit=2")
    assert ([one["name"] for one in page["experiments"]], page["has_more"]) == (["a", "c"], True)
    page = await ok(run, "GET", "?limit=2&after=c")
    assert ([one["name"] for one in page["experiments"]], page["has_more"]) == (["d", "filed"], False)


async def test_experiments_of_the_configuration_are_changed_only_in_the_file(run: Running) -> None:
    found = await ok(run, "GET", "/filed")
    assert (found["source"], found["status"]) == ("file", "active") and found["id"].startswith("filed@")
    for method, path in (("PUT", ""), ("DELETE", ""), ("POST", "/stop"), ("POST", "/start")):
        error = await error_of(await ask(run, method, f"/filed{path}"), 409)
        assert error["code"] == "experiment_in_file"


async def test_an_invalid_field_is_named_in_the_error(start: Start, tmp_path: Path) -> None:
    def second(**fields: Any) -> dict[str, Any]:
        return {"name": "x", "variants": [{"name": "a"}, {"name": "b", **fields}]}

    async with start(config(f"sqlite:///{tmp_path}/r.db", {"filed": TONE})) as run:
        for body, param in (
            ({}, "variants"), ({"name": "x"}, "variants"), (TONE, "name"), ({"name": "X", **TONE}, "name"),
            ({"name": "exp_1", **TONE}, "name"), ({"name": "x", **TONE, "traffic": "much"}, "traffic"),
            ({"name": "x", **TONE, "status": "active"}, "status"), (second(weight=-1), "variants[1].weight"),
            (second(tempo=1), "variants[1].tempo"), (second(parameters={"n": 2}), "variants[1].parameters"),
            ({"name": "x", "variants": 5}, "variants"), (second(system="a\0b"), "variants[1].system"),
            (second(name="a"), "variants"), ({**second(), "guard": {"metric": "y", "worse_by": 1}}, "guard"),
        ):  # fmt: skip
            response = await run.http.post(f"{run.url}/api/experiments", json=body, headers=OPS)
            error = await error_of(response, 400)
            assert error["param"] == param
            assert (error["code"] == "missing_required_parameter") == (param.partition("[")[0] not in body), error
        large = [{"name": f"v{number}", "system": "x" * 60_000} for number in range(5)]
        assert "bytes" in (await error_of(await ask(run, "POST", "", name="x", variants=large), 400))["message"]
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"metric_name": "errors", "metric_value": 1}, "metric_name"), ({"metric_name": "x"}, "metric_value"),
            ({"metric_name": "x y", "metric_value": 1}, "metric_name"),
            ({"metric_name": "x", "metric_value": "1"}, "metric_value"),
            ({"metric_name": "x", "metric_value": 1e300}, "metric_value"),
        ]  # fmt: skip
        for result, named in wrong:
            assert (await error_of(await ask(run, "POST", "/filed/results", A, **result), 400))["param"] == named


async def test_callers_can_report_results_only_for_their_own_units(
    run: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugins.experiments.recording.EVERY", 0.001)
    await ok(run, "POST", "", name="tone", **TONE)
    result = {"metric_name": "solved", "metric_value": 1}
    error = await error_of(await ask(run, "POST", "/tone/results", A, request_id="req_x", **result), 409)
    assert error["code"] == "experiment_not_active"
    await ok(run, "POST", "/tone/start")
    kind = user_of(TONE, "kind", (await ok(run, "GET", "/tone"))["id"])
    id = (await chat(run, user=kind)).headers["x-request-id"]
    for who, body, status in (
        (A, {"request_id": id}, 200), (A, {"unit": kind}, 200), (A, {"unit": kind, "variant": "kind"}, 200),
        (OPS, {"request_id": id}, 200), (OPS, {"unit": kind, "caller": "ann"}, 200), (B, {"request_id": id}, 404),
        (B, {"unit": kind}, 404), (OPS, {"unit": kind}, 404), (B, {"unit": kind, "caller": "ann"}, 403),
        (A, {"unit": kind, "variant": "plain"}, 400), (A, {"request_id": id, "variant": "plain"}, 400),
        (A, {"unit": kind, "request_id": id}, 400), (A, {"request_id": "a\0b"}, 400), (A, {"unit": "stranger"}, 404),
    ):  # fmt: skip
        response = await ask(run, "POST", "/tone/results", who, **body, **result)
        assert response.status == status, (body, await response.text())
    found = (await ok(run, "GET", "/tone/results"))["variants"][1]["metrics"]["solved"]
    assert (found["mean"], found["units"], found["observations"]) == (1, 1, 5)
    for method, path in (
        ("GET", ""), ("POST", ""), ("GET", "/tone"), ("PUT", "/tone"), ("DELETE", "/tone"), ("POST", "/tone/start"),
        ("POST", "/tone/pause"), ("POST", "/tone/stop"), ("GET", "/tone/results"),
    ):  # fmt: skip
        assert (await ask(run, method, path, A)).status == 403, "the other endpoints are for admins"


async def test_the_number_of_metrics_is_limited(run: Running) -> None:
    await ok(run, "POST", "", name="tone", **{**TONE, "unit": "caller"})
    await ok(run, "POST", "/tone/start")
    await chat(run)
    for number in range(MOST):
        await ok(run, "POST", "/tone/results", A, metric_name=f"m{number}", metric_value=number)
    await ok(run, "POST", "/tone/results", A, metric_name="m0", metric_value=-1.5)
    error = await error_of(await ask(run, "POST", "/tone/results", A, metric_name="more", metric_value=1), 400)
    assert error["code"] == "too_many_metrics"
    async with writer_of(run).store.database.reading() as connection:
        rows = (await connection.execute(select(METRICS).order_by(METRICS.c.name))).mappings().all()
    assert len(rows) == MOST and (rows[0]["results"], rows[0]["total"], rows[0]["owner"]) == (2, -1.5, "ann")


async def test_single_requests_are_units_without_a_name(run: Running) -> None:
    await ok(run, "POST", "", name="each", **{**TONE, "unit": "request"})
    await ok(run, "POST", "/each/start")
    arms = [arm(await chat(run, user="same")) for _ in range(16)]
    assert set(arms) == {"each=plain", "each=kind"}
    id = (await chat(run)).headers["x-request-id"]
    await ok(run, "POST", "/each/results", A, request_id=id, metric_name="solved", metric_value=1)
    error = await error_of(await ask(run, "POST", "/each/results", A, metric_name="solved", metric_value=1), 400)
    assert error["param"] == "request_id"
    found = await ok(run, "GET", "/each/results")
    assert sum(one["units"] for one in found["variants"]) == 17
    async with writer_of(run).store.database.reading() as connection:
        assert {row.owner for row in await connection.execute(select(UNITS.c.owner))} == {""}


async def test_results_as_csv(run: Running) -> None:
    await ok(run, "POST", "", name="tone", **TONE)
    response = await ask(run, "GET", "/tone/results?format=csv")
    assert (response.status, response.content_type) == (200, "text/csv")
    rows = list(csv.DictReader(io.StringIO(await response.text())))
    assert len(rows) == 16 and rows[0]["variant"] == "plain" and rows[0]["mean"] == "" and rows[0]["verdict"] == ""
    assert rows[8]["verdict"] == "too few units yet"
    assert (await error_of(await ask(run, "GET", "/tone/results?format=xml"), 400))["param"] == "format"


async def test_a_callers_data_is_exported_and_deleted(run: Running) -> None:
    await ok(run, "POST", "", name="tone", **TONE)
    await ok(run, "POST", "/tone/start")
    for who in (A, A, B):
        await chat(run, who, user="u")
    await ok(run, "POST", "/tone/results", A, unit="u", metric_name="solved", metric_value=1)
    me = f"{run.url}/api/me/data"
    told = (await (await run.http.get(me, headers=A)).json())["data"]["experiments"]
    assert [one.get("calls") for one in told] == [2, None] and told[1]["total"] == 1
    assert (await run.http.delete(me, headers=A)).status == 200
    assert (await (await run.http.get(me, headers=A)).json())["data"]["experiments"] == []
    assert [one["calls"] for one in (await (await run.http.get(me, headers=B)).json())["data"]["experiments"]] == [1]
    await flushed(run)
