"""Experiments in a chain: through the stock SDK, and how each call is counted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from proxy import config as configuration
from proxy import registry
from proxy.errors import ConfigError
from proxy.upstreams.demo import Simulator
from tests.conftest import Start
from tests.plugins.experiments.asking import OPS, TONE, A, B, arm, ask, chat, config, flushed, ok, user_of
from tests.whole.asking import asked, error_of, user


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/records.db"


async def test_a_user_keeps_the_same_variant_and_ratings_are_counted(start: Start, database_url: str) -> None:
    async with start(config(database_url, {"tone": TONE})) as run, run.client(api_key="a-key") as client:
        seen: dict[str, str] = {}
        for name in ("kind", "plain", "kind", "plain"):
            who = user_of(TONE, name, "tone")
            raw = await client.chat.completions.with_raw_response.create(
                model="demo", messages=[{"role": "user", "content": "hi"}], user=who
            )
            assert raw.headers["x-gemmapy-experiment"] == f"tone={name}"
            seen[name] = raw.headers["x-request-id"]
            body = asked(run.ollama)[-1]
            assert (body["messages"][0]["content"] == "Be kind.") == (name == "kind")
            assert (body.get("options", {}).get("temperature") == 0.5) == (name == "kind")
        for rating in ("down", "up", "up"):
            told = {"request_id": seen["kind"], "rating": rating}
            assert (await run.http.post(f"{run.url}/v1/feedback", json=told, headers=A)).status == 200
        found = await ok(run, "GET", "/tone/results")
        plain, kind = found["variants"]
        assert [(one["units"], one["calls"]) for one in (plain, kind)] == [(1, 2), (1, 2)]
        assert (kind["metrics"]["up"]["mean"], kind["metrics"]["down"]["mean"]) == (0.5, 0), "the last rating counts"
        assert plain["metrics"]["up"]["mean"] == 0 and plain["metrics"]["seconds"]["mean"] > 0
        assert kind["metrics"]["errors"]["verdict"] == "too few units yet" and found["srm"] == {"p": 1.0, "ok": True}
        rows = await (await run.http.get(f"{run.url}/api/metrics/export.csv", headers=OPS)).text()
        assert rows.count("tone=kind") == rows.count("tone=plain") == 2, "the record of each call has its variant"


async def test_two_servers_assign_the_same_variants(start: Start, url: str) -> None:
    async with start(config(url)) as one, start(config(url)) as other:
        made = await ok(one, "POST", "", name="tone", **TONE)
        await ok(one, "POST", "/tone/start")
        assert (await ok(other, "GET", "/tone"))["status"] == "active", "a request reads the current state first"
        for number in range(20):
            arms = {arm(await chat(run, user=f"u{number}")) for run in (one, other)}
            assert len(arms) == 1 and arms != {None}
        await flushed(other)
        found = await ok(one, "GET", f"/{made['id']}/results")
        assert sum(one["calls"] for one in found["variants"]) == 40
        assert sum(one["units"] for one in found["variants"]) == 20


async def test_other_servers_notice_a_change_soon(start: Start, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugins.experiments.plugin.LOOK", 0.01)
    async with start(config(url)) as one, start(config(url)) as other:
        await ok(one, "POST", "", name="tone", **TONE)
        for verb, takes_part in (("start", True), ("pause", False), ("start", True), ("stop", False)):
            await ok(one, "POST", f"/tone/{verb}")
            async with asyncio.timeout(30):
                while (arm(await chat(other)) is not None) != takes_part:  # noqa: ASYNC110  (there is no event)
                    await asyncio.sleep(0.005)


async def test_a_variant_can_be_a_model_or_a_template(start: Start, url: str) -> None:
    variants: list[dict[str, Any]] = [
        {"name": "one", "model": "demo"},
        {"name": "two", "model": "demo-thinking"},
        {"name": "three", "template": "summarize"},
        {"name": "four", "template": {"name": "shorten", "version": 1}},
    ]
    async with start(config(url, {"way": {"variants": variants}})) as run:
        for name, model in (("one", "demo:latest"), ("two", "demo-thinking:latest")):
            response = await chat(run, model="experiment:way", experiment={"variant": name})
            assert (arm(response), response.headers["x-gemmapy-model"]) == (f"way={name}", model)
        for name, label in (("three", "summarize@1"), ("four", "shorten@1")):
            response = await chat(run, experiment={"name": "way", "variant": name})
            assert (arm(response), response.headers["x-gemmapy-template"]) == (f"way={name}", label)
            assert "x-gemmapy-params" not in response.headers
        named = await chat(run, model="template:summarize", experiment={"name": "way", "variant": "four"})
        assert named.status == 400, "the variant's template replaces the named one, and there is no model then"
        await flushed(run)
        assert all(one["calls"] == 0 for one in (await ok(run, "GET", "/way/results"))["variants"]), (
            "forced variants are not counted"
        )


async def test_a_variants_model_is_used_for_the_requested_template(start: Start, url: str) -> None:
    text = config(url, {"way": {"variants": [{"name": "one"}, {"name": "two", "model": "demo-thinking"}]}})
    async with start(text.replace('"templates": {}', '"templates": {"model": "demo"}')) as run:
        seen = []
        for name, model in (("one", "demo:latest"), ("two", "demo-thinking:latest")):
            for field in ({"variables": {"words": 12}}, {"name": "shorten", "variables": {"words": 12}}):
                told: dict[str, Any] = {"experiment": {"name": "way", "variant": name}, "template": field}
                response = await chat(run, model="template:shorten@1", messages=user("A long text."), **told)
                assert response.headers["x-gemmapy-template"] == "shorten@1"
                assert response.headers["x-gemmapy-model"] == model
                seen.append(run.ollama.seen[-1].body["messages"])
        assert all(one == seen[0] for one in seen) and "Words at most: 12" in seen[0][-1]["content"]
        for name in ("one", "two"):
            plain: dict[str, Any] = {"experiment": {"name": "way", "variant": name}, "template": "shorten"}
            assert (await chat(run, model="template:shorten", **plain)).headers["x-gemmapy-template"] == "shorten@1"
            wrong: dict[str, Any] = {"experiment": {"name": "way", "variant": name}, "template": 5}
            assert (await error_of(await chat(run, model="template:shorten", **wrong), 400))["param"] == "template"


async def test_invalid_requests_are_errors_naming_the_field(start: Start, url: str) -> None:
    cases: list[tuple[dict[str, Any], int, str | None, str]] = [
        ({"model": "experiment:none"}, 404, "experiment_not_found", "model"),
        ({"experiment": "none"}, 404, "experiment_not_found", "experiment.name"),
        ({"experiment": {"name": "tone", "variant": "x"}}, 400, "invalid_value", "experiment.variant"),
        ({"experiment": {"name": "tone", "arm": "x"}}, 400, "unknown_parameter", "experiment.arm"),
        ({"experiment": 5}, 400, "invalid_type", "experiment"),
        ({"experiment": {}}, 400, "missing_required_parameter", "experiment.name"),
        ({"model": "experiment:tone", "experiment": "way"}, 400, "invalid_parameter_combination", "experiment.name"),
        ({"model": "experiment:"}, 400, None, "model"),
        ({"model": "experiment:tone"}, 400, "experiment_without_model", "model"),
    ]
    async with start(config(url, {"tone": TONE})) as run:
        for body, status, code, param in cases:
            error = await error_of(await chat(run, **body), status)
            assert (code is None or error["code"] == code) and error["param"] == param, body


async def test_callers_without_access_to_a_variants_model_are_excluded(start: Start, url: str) -> None:
    variants = [{"name": "a"}, {"name": "b", "model": "other"}]
    async with start(config(url, {"m": {"variants": variants, "unit": "request"}})) as run:
        assert {arm(await chat(run, B)) for _ in range(12)} == {None}
        error = await error_of(await chat(run, B, experiment={"name": "m", "variant": "b"}), 403)
        assert error["code"] == "model_not_allowed"
        refused = {(await chat(run, B, model="experiment:m", experiment={"variant": "b"})).status}
        assert refused == {403}


async def test_calls_that_some_variants_cannot_serve_are_not_counted(start: Start, url: str) -> None:
    told: dict[str, Any] = {
        "m": {"variants": [{"name": "a"}, {"name": "b", "model": "other"}]},
        "n": {"variants": [{"name": "a"}, {"name": "b", "model": "demo"}]},
        "c": {"variants": [{"name": "a"}, {"name": "b", "system": "Be kind."}]},
    }
    async with start(config(url, told)) as run:
        found = {(await chat(run, B, experiment="m", user=f"u{number}")).status for number in range(12)}
        assert found == {200, 403}
        found = {(await chat(run, model="experiment:n", user=f"u{number}")).status for number in range(12)}
        assert found == {200, 400}
        body = {"model": "demo", "prompt": "hi", "experiment": "c"}
        for number in range(12):
            said = {**body, "user": f"u{number}"}
            await (await run.http.post(f"{run.url}/v1/completions", json=said, headers=A)).read()
        await flushed(run)
        for name in told:
            variants = (await ok(run, "GET", f"/{name}/results"))["variants"]
            assert all(one["calls"] == 0 for one in variants), name


async def test_only_active_experiments_assign_variants(start: Start, url: str) -> None:
    told = {name: {**TONE, "status": name, "match": {"models": f"{name}*"}} for name in ("draft", "paused", "stopped")}
    async with start(config(url, told)) as run:
        assert arm(await chat(run)) is None
        assert arm(await chat(run, experiment="paused")) == "paused=plain", (
            "calls that name it get the control meanwhile"
        )
        assert arm(await chat(run, experiment={"name": "draft", "variant": "kind"})) == "draft=kind"
        found = [one["variants"] for one in [await ok(run, "GET", f"/{name}/results") for name in told]]
        assert all(one["calls"] == 0 for variants in found for one in variants)


async def test_a_template_variant_without_the_templates_plugin_is_warned_about(
    start: Start, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    variants = [{"name": "a"}, {"name": "b", "template": "summarize"}]
    async with start(config(url, {"way": {"variants": variants}}, "experiments")) as run:
        for _ in range(2):
            assert arm(await chat(run, experiment={"name": "way", "variant": "b"})) == "way=b"
        assert sum("the plugin `templates` does not follow" in record.message for record in caplog.records) == 1


async def test_calls_of_a_comparison_take_part_only_if_they_name_the_experiment(start: Start, url: str) -> None:
    told = config(url, {"tone": TONE}).replace("plugins: {", 'plugins: {"comparison": {}, ', 1)
    async with start(told) as run:
        for more, calls in (({}, 0), ({"experiment": "tone"}, 2)):
            given = {"models": ["demo", "demo-thinking"], "prompt": "hi", **more}
            async with run.http.post(f"{run.url}/api/ollama/compare", json=given, headers=A) as response:
                assert response.status == 200
            await flushed(run)
            variants = (await ok(run, "GET", "/tone/results"))["variants"]
            assert sum(one["calls"] for one in variants) == calls


async def test_calls_outside_the_traffic_share_are_not_affected(start: Start, url: str) -> None:
    async with start(config(url, {"tone": {**TONE, "traffic": 0}})) as run:
        assert arm(await chat(run)) is None
        assert arm(await chat(run, experiment="tone")) == "tone=plain"


async def test_a_reload_keeps_counts_and_another_definition_starts_new_ones(start: Start, url: str) -> None:
    async with start(config(url, {"tone": TONE})) as run:
        first = (await ok(run, "GET", "/tone"))["id"]
        await chat(run)
        run.configure(config(url, {"tone": {**TONE, "description": "Why?"}}))
        assert await run.server.reload()
        await chat(run)
        assert sum(one["calls"] for one in (await ok(run, "GET", "/tone/results"))["variants"]) == 2
        run.configure(config(url, {"tone": {**TONE, "unit": "caller"}}))
        assert await run.server.reload()
        await chat(run)
        for id, calls in (("tone", 1), (first, 2)):
            assert sum(one["calls"] for one in (await ok(run, "GET", f"/{id}/results"))["variants"]) == calls
        assert (await ok(run, "DELETE", f"/{first}"))["deleted"], (
            "experiments removed from the configuration can be deleted"
        )
        assert (await ask(run, "GET", f"/{first}/results")).status == 404


async def test_metrics_have_the_variant_as_a_label(start: Start, url: str) -> None:
    async with start(config(url, {"tone": TONE}, "metrics, experiments")) as run:
        for name in ("kind", "kind", "plain"):
            await chat(run, user=user_of(TONE, name, "tone"))
        text = await (await run.http.get(f"{run.url}/metrics", headers=OPS)).text()
        assert 'gemmapy_experiment_calls_total{arm="tone=kind",outcome="ok"} 2.0' in text


async def test_variants_do_not_share_cached_answers(start: Start, url: str) -> None:
    told = config(url, {"tone": TONE}, "usage, experiments, cache")
    async with start(told) as run:
        kind, plain = (user_of(TONE, name, "tone") for name in ("kind", "plain"))
        caches = []
        for who in (kind, plain, kind, plain):
            caches.append((await chat(run, user=who)).headers["x-gemmapy-cache"])
            await run.settled()
        assert caches == ["miss", "miss", "hit", "hit"]
        found = await ok(run, "GET", "/tone/results")
        assert [one["metrics"]["cached"]["mean"] for one in found["variants"]] == [0.5, 0.5]


async def test_failed_calls_are_counted_and_have_the_header(start: Start, url: str) -> None:
    variants = [{"name": "a"}, {"name": "b", "model": "nobody-has-it"}]
    async with start(config(url, {"m": {"variants": variants}})) as run:
        response = await chat(run, user=user_of({"variants": variants}, "b", "m"))
        assert (response.status, arm(response)) == (404, "m=b")
        await chat(run, user=user_of({"variants": variants}, "a", "m"))
        found = await ok(run, "GET", "/m/results")
        assert [one["metrics"]["errors"]["mean"] for one in found["variants"]] == [0, 1]
        assert [one["metrics"]["seconds"]["observations"] for one in found["variants"]] == [1, 0]


async def test_calls_other_than_chats_take_part(start: Start, url: str) -> None:
    variants = [{"name": "a"}, {"name": "b", "parameters": {"temperature": 0.1}}]
    async with start(config(url, {"m": {"variants": variants}})) as run:
        body = {"model": "demo", "prompt": "hi", "user": user_of({"variants": variants}, "b", "m")}
        response = await run.http.post(f"{run.url}/v1/completions", json=body, headers=A)
        assert (response.status, arm(response)) == (200, "m=b")
        sent = [one.body for one in run.ollama.seen if one.path == "/api/generate" and one.body.get("prompt")]
        assert sent[-1]["options"]["temperature"] == 0.1
        embedded = await run.http.post(
            f"{run.url}/v1/embeddings", json={"model": "demo-embed", "input": "x"}, headers=A
        )
        assert embedded.status == 200 and str(arm(embedded)).startswith("m=")
        wanted = {"model": "demo-embed", "input": "x", "experiment": {"name": "tone", "variant": "kind"}}
        error = await error_of(await run.http.post(f"{run.url}/v1/embeddings", json=wanted, headers=A), 404)
        assert error["code"] == "experiment_not_found"


async def test_a_variants_parameters_are_sent_like_the_callers_own(start: Start, url: str) -> None:
    variants = [{"name": "a"}, {"name": "b", "parameters": {"stop": "END"}}]
    async with start(config(url, {"m": {"variants": variants}})) as run:
        await chat(run, experiment={"name": "m", "variant": "b"})
        assert asked(run.ollama)[-1]["options"]["stop"] == ["END"]


async def test_streams_are_counted_at_their_end(start: Start, url: str) -> None:
    async with start(config(url, {"tone": TONE}, "experiments"), Simulator()) as run:
        response = await chat(run, stream=True)
        assert str(arm(response)).startswith("tone=")
        found = await ok(run, "GET", "/tone/results")
        assert sum(one["calls"] for one in found["variants"]) == 1, "even if no other plugin measures calls"


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"variants": [{"name": "a"}]}, "at least 2 items"),
        ({"variants": [{"name": "a"}, {"name": "a"}]}, "two variants have the same name"),
        ({"variants": [{"name": "a"}, {"name": "b", "weight": 0}]}, "greater than or equal to 1"),
        ({"variants": [{"name": "a"}, {"name": "b", "parameters": {"heat": 1}}]}, "'heat' is not one of"),
        ({"variants": [{"name": "a"}, {"name": "b", "parameters": {"temperature": 9}}]}, "temperature"),
        ({"variants": [{"name": "a"}, {"name": "B"}]}, "cannot be a name"),
        ({"variants": [{"name": "a"}, {"name": "b", "model": "template:x"}]}, "under `template`"),
        ({**TONE, "unit": "planet"}, "'user'"),
        ({**TONE, "traffic": 2}, "less than or equal to 1"),
        ({**TONE, "guard": {"metric": "tickets", "worse_by": 1}}, "set under `better`"),
        ({**TONE, "color": 1}, "no such setting"),
    ],
)
def test_invalid_configurations_are_refused(told: dict[str, Any], words: str) -> None:
    text = config("sqlite:///x.db", {"e": told}) + "upstreams: {local: {ollama: 'http://x'}}\n"
    with pytest.raises(ConfigError, match=words):
        configuration.read("proxy.yaml", text, registry.problems_of, {})


@pytest.mark.parametrize("chain", ["templates, experiments", "experiments, usage", "limits, experiments"])
def test_a_wrong_order_of_plugins_is_refused(chain: str) -> None:
    with pytest.raises(ConfigError, match="must come before"):
        configuration.read("proxy.yaml", config("sqlite:///x.db", {}, chain), registry.problems_of, {})


async def test_without_experiments_calls_have_no_variant(start: Start, url: str) -> None:
    async with start(config(url)) as run:
        response = await chat(run, messages=user("hello"))
        assert response.status == 200 and arm(response) is None
        assert (await ok(run, "GET", ""))["experiments"] == []
        assert (await ask(run, "GET", "", B)).status == 403
