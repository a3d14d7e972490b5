"""One question to several models, with SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from plugins.comparison.store import Store
from proxy.clock import Clock
from proxy.sql.database import DatabaseAway
from proxy.upstreams.demo import Fault, Model, Said, Simulator
from tests.clocks import jump
from tests.conftest import Start
from tests.plugins.comparison.asking import (
    SMALL,
    THREE,
    TWO,
    A,
    Json,
    api_of,
    asks,
    compare,
    config,
    models,
    streamed,
)
from tests.plugins.usage.asking import written
from tests.whole.asking import asked, data_url, error_of, picture, settled

COMPARE = "/api/ollama/compare"
PRICES = "costs: {prices: {models: {'*': {input: 1, output: 2}}}}\n"


async def test_every_models_answer_and_figures_are_returned_and_stored(start: Start, database_url: str) -> None:
    async with start(config(database_url, "usage", more=PRICES), models()) as run:
        told = await compare(run, prompt="hi\0 there", system="Be brief.", temperature=0.5, seed=7, max_tokens=50)
        assert [one["model"] for one in told["results"]] == TWO
        assert [one["response"] for one in told["results"]] == [f"I am {one}, and you said hi there" for one in TWO]
        for one in told["results"]:
            assert one["success"] and not one["cached"] and one["finish_reason"] == "stop" and "error" not in one
            assert one["eval_count"] > 3 and one["prompt_eval_count"] > 3 and one["tokens_per_second"] > 0
            assert 0 < one["first_token_ms"] <= one["duration"] * 1000 + 1
            assert one["cost"] > 0 and one["currency"] == "USD"
        kept = await asks(run, "GET", f"/api/comparisons/{told['comparison_id']}")
        assert {name: kept[name] for name in told} == told
        assert kept["options"] == {"temperature": 0.5, "seed": 7, "max_tokens": 50}
        assert kept["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi there"}]
        for body in asked(run.ollama):
            assert body["options"]["temperature"] == 0.5 and body["stream"] is True
            assert [one["role"] for one in body["messages"]] == ["system", "user"]
        rows = await written(run, 2)
        assert {row["call"] for row in rows} == {one["request_id"] for one in told["results"]}
        assert {json.loads(row["tags"])["comparison"] for row in rows} == {told["comparison_id"]}
        assert {row["caller"] for row in rows} == {"alice"}
        costs = {row["call"]: row["cost"] for row in rows}
        assert all(round(one["cost"] * 1e9) == costs[one["request_id"]] for one in told["results"])


WRONG: list[tuple[Json, str, str]] = [
    ({"models": None}, "models", "invalid_value"),
    ({"models": ["llama"]}, "models", "invalid_value"),
    ({"models": ["llama", "llama"]}, "models", "invalid_value"),
    ({"models": [f"m{one}" for one in range(9)]}, "models", "invalid_value"),
    ({"models": ["llama", 3]}, "models[1]", "invalid_value"),
    ({"models": ["llama", " "]}, "models[1]", "invalid_value"),
    ({"prompt": None}, "prompt", "missing_required_parameter"),
    ({"prompt": "  "}, "prompt", "invalid_value"),
    ({"messages": [{"role": "user", "content": "x"}]}, "prompt", "invalid_parameter_combination"),
    ({"prompt": None, "messages": [{"role": "x", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"prompt": None, "messages": []}, "messages", "empty_array"),
    ({"prompt": None, "system": "Be brief."}, "prompt", "missing_required_parameter"),
    ({"prompt": None, "messages": [], "system": "x"}, "messages", "empty_array"),
    ({"prompt": None, "messages": [{"role": "x"}], "system": "x"}, "messages[0].role", "invalid_value"),
    ({"prompt": None, "messages": "hi", "system": "x"}, "messages", "invalid_type"),
    ({"temperature": 3}, "temperature", "above_maximum_value"),
    ({"options": {"top_k": "x"}}, "options.top_k", "invalid_type"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_parameter"),
    ({"conversation": "conv_x"}, "conversation", "unsupported_parameter"),
    ({"n": 2}, "n", "invalid_value"),
    ({"model": "llama"}, "model", "unknown_parameter"),
    ({"stream": "yes"}, "stream", "invalid_value"),
    ({"judge": {"criteria": "short"}}, "judge.model", "missing_required_parameter"),
    ({"judge": {"model": "x", "by": 1}}, "judge.by", "unknown_parameter"),
    ({"use_retry": "no"}, "use_retry", "invalid_type"),
    ({"logit_bias": {"1": 1}}, "logit_bias", "unsupported_parameter"),
]


async def test_an_invalid_field_is_named_in_the_error(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", "retry"), models()) as run:
        for wrong, param, code in WRONG:
            body = {"models": TWO, "prompt": "hi", **wrong}
            error = await error_of(await run.http.post(f"{run.url}{COMPARE}", headers=A, json=body), 400)
            assert (error["param"], error["code"]) == (param, code), wrong
        assert asked(run.ollama) == []


async def test_one_failed_model_is_a_result_and_all_failed_are_an_error(start: Start, database_url: str) -> None:
    async with start(config(database_url), models()) as run:
        told = await compare(run, models=["nobody", "llama"])
        failed, good = told["results"]
        assert (
            not failed["success"] and failed["error"]["code"] == "model_not_found" and "nobody" in str(failed["error"])
        )
        assert failed["response"] == "" and failed["eval_count"] is None and good["success"]
        given: Json = {"headers": A, "json": {"models": ["nobody", "no-one"], "prompt": "hi"}}
        error = await error_of(await run.http.post(f"{run.url}{COMPARE}", **given), 404)
        assert error["code"] == "model_not_found" and "no-one" in error["message"]
        *_, (name, last) = await streamed(run, models=["nobody", "no-one"])
        assert name == "error" and last["error"]["code"] == "model_not_found"
        assert len((await asks(run, "GET", "/api/comparisons"))["data"]) == 1


async def test_a_stream_has_the_same_results(start: Start, tmp_path: Any) -> None:
    ollama = models(faults=[Fault("error_line", after=2, path="/api/chat")])
    async with start(config(f"sqlite:///{tmp_path}/x.db", at_once=1), ollama) as run:
        events = await streamed(run, models=["mistral", "llama"])
        names = [name for name, _ in events]
        assert names[0] == "comparison.created" and names[-1] == "comparison.done"
        assert all(told["type"] == name for name, told in events)
        assert events[0][1]["models"] == ["mistral", "llama"]
        done = {told["index"]: told["result"] for name, told in events if name == "result.done"}
        assert not done[0]["success"] and done[0]["error"]["code"] == "upstream_server"
        words = [
            "".join(told["delta"] for name, told in events if told.get("index") == one and "delta" in told)
            for one in (0, 1)
        ]
        assert words == [done[0]["response"], done[1]["response"]] and words[1].startswith("I am llama") and words[0]
        whole = dict(events[-1][1])
        assert whole.pop("type") and [done[0], done[1]] == whole["results"]
        assert {**whole, "messages": 1, "options": 1}.keys() == (
            await asks(run, "GET", f"/api/comparisons/{whole['comparison_id']}")
        ).keys()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_disconnects_cancels_every_call_and_nothing_is_stored(
    start: Start, tmp_path: Any, stream: bool
) -> None:
    ollama = models(faults=[Fault("stall", after=1, times=3)])
    async with start(config(f"sqlite:///{tmp_path}/x.db"), ollama) as run:
        body = {"models": [*THREE, "judge"], "prompt": "hi", "stream": stream}
        asking = asyncio.ensure_future(run.http.post(f"{run.url}{COMPARE}", headers=A, json=body))
        await ollama.until(lambda: len(asked(ollama)) == 2)
        if stream:
            (await asking).close()
        else:
            asking.cancel()
        await ollama.until_abandoned(2)
        assert sorted(one["model"] for one in asked(ollama)) == sorted(f"{one}:latest" for one in TWO)
        assert (await asks(run, "GET", "/api/comparisons"))["data"] == []
        assert api_of(run).ends.awaited == {}


async def test_models_are_called_in_order_with_bounded_concurrency(start: Start, tmp_path: Any) -> None:
    most = 0

    def say(body: Json) -> Said | None:
        nonlocal most
        most = max(most, ollama.running)
        return None

    ollama = models("a", "b", say=say)
    async with start(config(f"sqlite:///{tmp_path}/x.db", at_once=1), ollama) as run:
        given = ["phi", "b", "llama", "a", "mistral"]
        await compare(run, models=given)
        assert [one["model"].partition(":")[0] for one in asked(ollama)] == given and most == 1


async def test_cached_results_are_marked_and_a_rating_down_invalidates_them(start: Start, database_url: str) -> None:
    async with start(config(database_url, "usage, cache"), models()) as run:
        await compare(run)
        await settled(run)
        told = await compare(run)
        assert [one["cached"] for one in told["results"]] == [True, True]
        assert all(one["tokens_per_second"] is None and one["eval_count"] > 0 for one in told["results"])
        path = f"/api/comparisons/{told['comparison_id']}/rate"
        rated = await asks(run, "POST", path, model="llama", rating="down")
        assert [one["rating"] for one in rated["results"]] == ["down", "none"]
        async with asyncio.timeout(30):
            while True:
                again = await compare(run)
                if not again["results"][0]["cached"]:
                    break
        assert again["results"][1]["cached"]
        anew = await compare(run, use_cache=False)
        assert [one["cached"] for one in anew["results"]] == [False, False]


async def test_a_fallbacks_answer_does_not_count_as_the_models(start: Start, tmp_path: Any) -> None:
    ollama = models(faults=[Fault("status", status=500)])
    text = config(f"sqlite:///{tmp_path}/x.db", "fallback", at_once=1).replace(
        '"fallback": {}', '"fallback": {"default": ["phi"]}'
    )
    async with start(text, ollama) as run:
        first, second = (await compare(run))["results"]
        assert first["error"]["code"] == "fell_back" and "phi" in first["error"]["message"] and first["response"] == ""
        assert second["success"]


async def test_a_key_reaches_only_the_models_and_routes_it_allows(start: Start, tmp_path: Any) -> None:
    more = "keys: {alice: a-key, small: {key: s-key, models: ['llama*']}, embeds: {key: e-key, routes: [embeddings]}}\n"
    text = config(f"sqlite:///{tmp_path}/x.db", "usage")
    async with start(text[: text.index("keys:")] + more, models()) as run:
        one, other = (await compare(run, SMALL, judge={"model": "judge"}))["results"]
        assert one["success"] and other["error"]["code"] == "model_not_allowed"
        rows = await written(run, 2)
        assert {(row["asked"], row["error"]) for row in rows} == {("llama", ""), ("mistral", "model_not_allowed")}
        assert len(rows) == 2  # a refused call is recorded once
        embeds = {"Authorization": "Bearer e-key"}
        assert (await compare(run, embeds, 403))["error"]["code"] == "route_not_allowed"
        judged = await asks(run, "POST", "/api/comparisons/cmp_x/judge", embeds, 403, model="llama")
        assert judged["error"]["code"] == "route_not_allowed"
        assert len(asked(run.ollama)) == 1


async def test_model_names_are_hidden_until_the_vote(
    start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chances = iter((0.7, 0.2, 0.5))
    monkeypatch.setattr(Clock, "uniform", lambda self, low, high: next(chances))
    async with start(config(database_url), models(say=lambda body: Said("hello"))) as run:
        told = await compare(run, models=["llama", "nobody", "phi"], blind=True)
        id = told["comparison_id"]
        seen = [
            told,
            *(await asks(run, "GET", "/api/comparisons"))["data"],
            await asks(run, "GET", f"/api/comparisons/{id}"),
        ]
        seen += [await asks(run, "POST", f"/api/comparisons/{id}/rate", model="B", rating="up")]
        for one in seen:
            assert [result["model"] for result in one["results"]] == ["A", "B", "C"]
            assert not any(name in json.dumps(one) for name in ("llama", "nobody", "phi", "req_"))
        for winner in ("llama", "A", "D"):  # a hidden name, a failed model, an unknown one
            wrong = await asks(run, "POST", f"/api/comparisons/{id}/rate", status=400, winner=winner)
            assert (wrong["error"]["param"], wrong["error"]["code"]) == ("winner", "invalid_value")
        failed: Json = {"model": "A", "rating": "up"}  # no model gave an answer to vote for
        assert (await asks(run, "POST", f"/api/comparisons/{id}/rate", status=400, **failed))["error"][
            "param"
        ] == "model"
        voted = await asks(run, "POST", f"/api/comparisons/{id}/rate", winner="C")
        assert [one["model"] for one in voted["results"]] == ["nobody", "phi", "llama"] and voted["vote"] == "llama"
        assert voted["results"][1]["rating"] == "up" and voted["results"][1]["request_id"].startswith("req_")
        changed = await asks(run, "POST", f"/api/comparisons/{id}/rate", winner="phi")
        assert changed["vote"] == "phi"
        assert (await asks(run, "POST", f"/api/comparisons/{id}/rate", winner="none_good"))["vote"] == "none_good"
        assert (await asks(run, "GET", f"/api/comparisons/{id}"))["vote"] == "none_good"


NO_VOTES: list[Json] = [
    {},
    {"winner": "llama", "model": "llama", "rating": "up"},
    {"model": "llama"},
    {"rating": "up"},
    {"winner": 3},
    {"model": "llama", "rating": "good"},
    {"model": "nobody", "rating": "up"},
    {"winner": ""},
]


async def test_an_invalid_vote_is_refused(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db"), models()) as run:
        id = (await compare(run))["comparison_id"]
        for form in NO_VOTES:
            response = await run.http.post(f"{run.url}/api/comparisons/{id}/rate", headers=A, json=form)
            assert (await error_of(response, 400))["code"] == "invalid_value", form


async def test_answers_are_returned_while_the_database_is_down(
    start: Start, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise DatabaseAway("it does not answer")

    async with start(config(f"sqlite:///{tmp_path}/x.db"), models()) as run:
        monkeypatch.setattr(Store, "add", away)
        told = await compare(run, judge={"model": "judge"})
        assert told["kept"] is False and [one["success"] for one in told["results"]] == [True, True]
        told = await compare(run, blind=True)
        assert sorted(one["model"] for one in told["results"]) == TWO, "names are shown at once, as no vote is possible"
        monkeypatch.setattr(Store, "ready", away)
        before = len(asked(run.ollama))
        assert (await compare(run, status=503))["error"]["code"] == "database_unavailable"
        assert len(asked(run.ollama)) == before


async def test_stored_comparisons_are_bounded_in_number_and_size(start: Start, database_url: str) -> None:
    long = "wörd " * 100
    ollama = models(say=lambda body: Said(long if body["model"].startswith("llama") else "short"))
    async with start(config(database_url, max_comparisons=2, max_bytes=300), ollama) as run:
        told = [await compare(run, prompt=str(index)) for index in range(4)]
        assert told[3]["results"][0]["response"] == long and "cut" not in told[3]["results"][0]
        left = (await asks(run, "GET", "/api/comparisons"))["data"]
        assert [one["prompt"] for one in left] == ["3", "2"] and "response" not in left[0]["results"][0]
        kept = (await asks(run, "GET", f"/api/comparisons/{told[3]['comparison_id']}"))["results"]
        assert (
            kept[0]["cut"] and long.startswith(kept[0]["response"]) and len(kept[0]["response"].encode()) in (149, 150)
        )
        assert kept[1]["response"] == "short" and "cut" not in kept[1]
        given: Json = {"headers": A, "json": {"models": TWO, "prompt": "x" * 400}}
        assert (await error_of(await run.http.post(f"{run.url}{COMPARE}", **given), 413))["param"] == "prompt"


@pytest.mark.parametrize(("at_once", "status"), [(2, 200), (1, 504)])
async def test_at_the_callers_deadline_the_finished_results_are_returned(
    start: Start, tmp_path: Any, at_once: int, status: int
) -> None:
    ollama = models(faults=[Fault("stall", after=1)])
    async with start(config(f"sqlite:///{tmp_path}/x.db", at_once=at_once), ollama) as run:
        given, headers = {"models": TWO, "prompt": "hi"}, {**A, "x-stainless-read-timeout": "50"}
        asking = asyncio.ensure_future(run.http.post(f"{run.url}{COMPARE}", headers=headers, json=given))
        await ollama.until(lambda: (ollama.running, ollama.finished) == (1, at_once - 1))
        for _ in range(50):  # iterations of the event loop, until the finished results have arrived
            await asyncio.sleep(0.001)
        jump(50)
        async with await asking as response:
            told = await response.json()
        assert response.status == status
        codes = [one["error"]["code"] for one in told["results"] if not one["success"]] if status == 200 else []
        assert codes == ["upstream_timeout"] or told["error"]["code"] == "upstream_timeout"


@pytest.mark.parametrize("blind", [False, True])
async def test_heartbeats_report_progress_without_hidden_names(start: Start, tmp_path: Any, blind: bool) -> None:
    text = config(f"sqlite:///{tmp_path}/x.db", more="streams: {heartbeat: 0.03}\n")
    ollama = models(faults=[Fault("slow_load", times=2, until=(loaded := asyncio.Event()))])
    async with start(text, ollama) as run:
        given = {"models": TWO, "prompt": "hi", "stream": True, "blind": blind}
        async with run.http.post(f"{run.url}{COMPARE}", headers=A, json=given) as response:
            comments = [""]
            while not comments[-1].startswith(":" if blind else ": loading"):
                comments.append((await response.content.readline()).decode())
            loaded.set()
            comments += (await response.text()).split("\n")
        assert any("loading" in one for one in comments if one.startswith(":")) != blind


async def test_answers_are_not_added_to_a_conversation(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", "conversations"), models()) as run:
        made = await asks(run, "POST", "/v1/conversations", items=[])
        told = await compare(run, {**A, "x-gemmapy-conversation": made["id"]})
        assert [one["success"] for one in told["results"]] == [True, True]
        assert (await asks(run, "GET", f"/v1/conversations/{made['id']}/items"))["data"] == []


async def test_templates_are_compared_like_models(start: Start, tmp_path: Any) -> None:
    text = config(f"sqlite:///{tmp_path}/x.db", "templates").replace('"templates": {}', '"templates": {"model": "phi"}')
    async with start(text, models()) as run:
        chosen = ["template:summarize", "template:shorten"]
        told = await compare(run, models=chosen, prompt="A long text.")
        assert [(one["model"], one["success"]) for one in told["results"]] == [(name, True) for name in chosen]
        assert {body["model"] for body in asked(run.ollama)} == {"phi:latest"}
        prompts = [body["messages"][-1]["content"] for body in asked(run.ollama)]
        assert len(set(prompts)) == 2 and all("A long text." in one for one in prompts)


async def test_templates_without_variables_are_compared_without_a_prompt(start: Start, tmp_path: Any) -> None:
    (tmp_path / "own.yaml").write_text("[{name: hello, template: Say hello.}, {name: bye, template: Say goodbye.}]")
    text = config(f"sqlite:///{tmp_path}/x.db", "templates")
    text = text.replace('"templates": {}', f'"templates": {{"model": "phi", "path": "{tmp_path}", "custom": false}}')
    async with start(text, models()) as run:
        told = await compare(run, models=["template:hello", "template:bye"], prompt=None)
        assert [one["response"].rpartition("said ")[2] for one in told["results"]] == ["Say hello.", "Say goodbye."]
        for chosen in (["template:hello", "llama"], ["llama", "template:hello"]):
            response = await run.http.post(f"{run.url}{COMPARE}", headers=A, json={"models": chosen})
            assert (await error_of(response, 400))["param"] == "prompt", "`llama` needs a prompt"


async def test_only_the_number_of_images_is_stored(start: Start, tmp_path: Any) -> None:
    seeing = frozenset({"completion", "vision"})
    ollama = Simulator(models=[Model(f"{name}:latest", seeing) for name in TWO])
    async with start(config(f"sqlite:///{tmp_path}/x.db"), ollama) as run:
        told = await compare(run, prompt=None, messages=picture(data_url()))
        kept = await asks(run, "GET", f"/api/comparisons/{told['comparison_id']}")
        assert kept["messages"] == [{"role": "user", "content": "What is this?", "images": 1}]
        assert all(body["messages"][0]["images"] for body in asked(ollama)) and len(asked(ollama)) == 2


async def test_a_key_is_required(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db"), models()) as run:
        response = await run.http.post(f"{run.url}{COMPARE}", json={"models": TWO, "prompt": "hi"})
        assert (await error_of(response, 401))["code"] == "invalid_api_key" and asked(run.ollama) == []


async def test_ignored_fields_are_reported_as_for_any_chat(start: Start, tmp_path: Any) -> None:
    text = config(f"sqlite:///{tmp_path}/x.db")
    given: Json = {"headers": A, "json": {"models": TWO, "prompt": "hi", "keep_alive": 1, "colour": "red"}}
    async with start(text, models()) as run, run.http.post(f"{run.url}{COMPARE}", **given) as response:
        assert response.headers["x-gemmapy-params"] == "keep_alive=ignored, colour=ignored"
    async with start(f"params: strict\n{text}", models()) as run:
        error = await error_of(await run.http.post(f"{run.url}{COMPARE}", **given), 400)
        assert (error["param"], error["code"]) == ("keep_alive", "unsupported_parameter")


async def test_an_exception_in_one_call_does_not_affect_the_others(start: Start, tmp_path: Any) -> None:
    text = config(f"sqlite:///{tmp_path}/x.db").replace(
        '"comparison": {}', '"comparison": {}, "odd": {"use": "tests.plugins.comparison.asking:Odd"}'
    )
    async with start(text.replace('"chat": []', '"chat": ["odd"]'), models()) as run:
        odd, good = (await compare(run))["results"]
        assert odd["error"] == {"code": "internal_error", "message": "The server failed to answer."} and good["success"]


async def test_retries_and_limits_apply_to_each_call(start: Start, tmp_path: Any) -> None:
    text = config(f"sqlite:///{tmp_path}/x.db", "limits, retry", at_once=1)
    text = text.replace('"limits": {}', '"limits": {"limits": [{"requests_per_minute": 2}]}')
    ollama = models(faults=[Fault("status", status=503)])
    async with start(text.replace('"retry": {}', '"retry": {"wait": 0.001}'), ollama) as run:
        told = await compare(run, models=THREE)
        assert [one["success"] for one in told["results"]] == [True, True, False]
        assert told["results"][2]["error"]["code"] == "rate_limit_exceeded"
        given: Json = {"headers": A, "json": {"models": TWO, "prompt": "hi"}}
        async with run.http.post(f"{run.url}{COMPARE}", **given) as response:
            assert response.status == 429 and int(response.headers["retry-after"]) > 0
