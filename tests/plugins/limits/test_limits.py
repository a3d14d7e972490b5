"""Limits in one process: what passes, what is refused, and how that is reported."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from plugins.limits.reporting import duration
from proxy.upstreams.demo import Fault, Simulator
from tests.conftest import Running, Start
from tests.plugins.limits.asking import KEYS, chat, key, limits, limits_shown, statuses, until_used, used
from tests.whole.asking import until_shared, user


async def test_a_limit_of_requests_lets_exactly_that_many_through(start: Start) -> None:
    async with start(limits("{requests_per_minute: 100}")) as run:
        answers = await asyncio.gather(*(chat(run) for _ in range(150)))
    assert sorted(status for status, _, _ in answers) == [200] * 100 + [429] * 50


async def test_a_refusal_names_the_limit_and_when_to_retry(start: Start) -> None:
    async with start(limits("{requests_per_minute: 2}")) as run:
        await statuses(run, 2)
        status, body, headers = await chat(run)
    assert status == 429 and body["error"]["type"] == "rate_limit_error"
    assert body["error"]["code"] == "rate_limit_exceeded"
    assert "2 requests per minute for caller 'anonymous'" in body["error"]["message"]
    assert 20 <= int(headers["retry-after"]) <= 61 and 20_000 < int(headers["retry-after-ms"]) <= 61_000
    assert headers["x-ratelimit-limit-requests"] == "2" and headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-should-retry" not in headers


async def test_invalid_token_counts_of_an_upstream_leave_no_slot_occupied(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    nonsense = [("prompt_eval_count", "many"), ("eval_count", -1), ("eval_duration", [])]
    monkeypatch.setattr("proxy.upstreams.demo.generation.Run._metrics", lambda *_: iter(nonsense))
    async with start(limits("{at_once: 1}")) as run:
        assert await statuses(run, 3) == [200] * 3


async def test_a_call_whose_cost_cannot_be_computed_leaves_no_slot_occupied(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.prices.PriceBook.cost", lambda *_: 1 / 0)
    async with start(limits("{at_once: 1}")) as run:
        assert await statuses(run, 3) == [200] * 3


async def test_every_answer_has_the_remaining_amounts(start: Start) -> None:
    rules = ("{requests_per_minute: 10, tokens_per_minute: 10000}", "{per: all, requests_per_minute: 5}")
    async with start(limits(*rules)) as run:
        _, _, headers = await chat(run, max_tokens=100)
        run.ollama.faults.append(Fault("status"))
        status, _, failed = await chat(run, max_tokens=100)
        async with run.http.post(
            f"{run.url}/api/chat", json={"model": "demo", "messages": user("hi"), "stream": False}
        ) as response:
            native = response.headers["x-ratelimit-remaining-requests"]
    assert headers["x-ratelimit-limit-requests"] == "5" and headers["x-ratelimit-remaining-requests"] == "4"
    assert headers["x-ratelimit-limit-tokens"] == "10000" and headers["x-ratelimit-remaining-tokens"] == "9899"
    assert headers["x-ratelimit-reset-requests"] in ("1m0s", "1m1s")
    assert headers["x-ratelimit-reset-tokens"] in ("1m0s", "1m1s")
    assert status == 502 and failed["x-ratelimit-remaining-requests"] == "3"
    assert native == "2"
    assert not any("ratelimit" in name for name in headers if name.startswith("x-gemmapy"))


async def test_a_stream_has_the_remaining_amounts_and_the_log_does_not(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with start(limits("{requests_per_minute: 10}")) as run:
        _, _, headers = await chat(run, stream=True)
    assert headers["x-ratelimit-remaining-requests"] == "9"
    assert "chat" in caplog.text and "ratelimit" not in caplog.text


@pytest.mark.parametrize("chain", ["limits, cache", "usage, limits"])
async def test_a_slow_stream_has_the_remaining_amounts(start: Start, tmp_path: Any, chain: str) -> None:
    """Its response headers are sent with the first heartbeat."""
    stall = Fault("stall", until=(go := asyncio.Event()))
    text = limits("{requests_per_minute: 5}", chain=chain).replace("cache: {}", "cache: {}, usage: {}")
    text += f"streams: {{heartbeat: 0.01}}\ndatabase: {{url: 'sqlite:///{tmp_path}/x.db'}}\n"
    async with start(text, Simulator(faults=[stall])) as run, await run.chat(stream=True) as response:
        assert response.headers["x-ratelimit-remaining-requests"] == "4"
        go.set()
        assert "[DONE]" in await response.text()


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0ms"),
        (120, "120ms"),
        (1000, "1s"),
        (1001, "2s"),
        (60_000, "1m0s"),
        (90_000, "1m30s"),
        (3_600_000, "1h0m0s"),
    ],
)
def test_durations_are_formatted_like_openais(milliseconds: int, text: str) -> None:
    assert duration(milliseconds) == text


async def test_concurrent_calls_are_limited_and_a_finished_call_frees_a_slot(start: Start) -> None:
    stall = Fault("stall", times=2, until=(go := asyncio.Event()))
    async with start(limits("{at_once: 2}"), Simulator(faults=[stall])) as run:
        two = [asyncio.ensure_future(chat(run, stream=True, max_tokens=20)) for _ in range(2)]
        await until_used(run, "at_once", 2)
        status, body, headers = await chat(run)
        assert (status, body["error"]["code"], headers["retry-after"]) == (429, "too_many_at_once", "1")
        assert "2 calls for caller 'anonymous' are under way" in body["error"]["message"]
        go.set()
        for one in two:
            assert (await one)[0] == 200
        await until_used(run, "at_once", 0)
        assert (await chat(run))[0] == 200


async def test_sequential_calls_never_exceed_a_concurrency_of_one(start: Start) -> None:
    async with start(limits("{at_once: 1}")) as run:
        for stream in (False, True) * 15:
            assert (await chat(run, stream=stream))[0] == 200


@pytest.mark.parametrize("fault", ["eof", "reset", "status"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failed_call_leaves_nothing_reserved(start: Start, fault: Any, stream: bool) -> None:
    async with start(limits("{at_once: 5, tokens_per_minute: 100000}"), Simulator(faults=[Fault(fault)])) as run:
        await chat(run, stream=stream)
        await until_used(run, "at_once", 0)
        assert await used(run, "tokens_per_minute") == 0


async def test_a_client_that_disconnects_frees_its_slot_and_pays_for_generated_tokens(start: Start) -> None:
    rules, stall = limits("{at_once: 1, tokens_per_minute: 100000}"), Fault("stall", after=3)
    async with start(rules, Simulator(faults=[stall])) as run:
        asked = {"model": "demo", "messages": user("hi"), "stream": True, "max_tokens": 500}
        response = await run.http.post(f"{run.url}/v1/chat/completions", json=asked)
        await response.content.readany()
        assert await used(run, "tokens_per_minute") == 501  # as reserved
        response.close()
        await until_used(run, "at_once", 0)
        assert 0 < await used(run, "tokens_per_minute") < 100


async def test_a_stream_that_is_cut_off_is_settled_with_its_tokens_so_far(start: Start) -> None:
    async with start(limits("{tokens_per_minute: 100000}"), Simulator(faults=[Fault("eof", after=3)])) as run:
        await chat(run, stream=True, max_tokens=500)
        await until_used(run, "tokens_per_minute", 4)  # three pieces, and the token of "hi"


async def test_tokens_are_reserved_and_then_settled(start: Start) -> None:
    async with start(limits("{tokens_per_minute: 100000}")) as run:
        _, body, headers = await chat(run)
        assert headers["x-ratelimit-remaining-tokens"] == str(100_000 - 512 - 1)
        assert await used(run, "tokens_per_minute") == body["usage"]["total_tokens"]


async def test_reserved_tokens_are_not_available_to_others(start: Start) -> None:
    stall = Fault("stall", until=(go := asyncio.Event()))
    async with start(limits("{tokens_per_minute: 1000}"), Simulator(faults=[stall])) as run:
        first = asyncio.ensure_future(chat(run, stream=True, max_tokens=20))
        await until_used(run, "tokens_per_minute", 21)
        status, body, _ = await chat(run, max_tokens=980)
        assert status == 429 and "1000 tokens per minute" in body["error"]["message"]
        assert "21 are counted, and this call needs about 981" in body["error"]["message"]
        go.set()
        assert (await first)[0] == 200


async def test_max_tokens_beyond_the_limit_reserves_what_remains(start: Start) -> None:
    async with start(limits("{tokens_per_minute: 200}")) as run:
        assert (await chat(run, max_tokens=5000))[0] == 200
        assert (await chat(run, max_tokens=5000))[0] == 429


async def test_a_prompt_that_exceeds_the_limit_by_itself_is_not_retried(start: Start) -> None:
    async with start(limits("{tokens_per_minute: 100}")) as run:
        status, body, headers = await chat(run, messages=user("x" * 1000))
    assert status == 429 and "more than there ever are" in body["error"]["message"]
    assert headers["x-should-retry"] == "false" and "retry-after" not in headers


async def test_a_cached_answer_counts_as_a_request_without_tokens(start: Start) -> None:
    text = limits("{requests_per_minute: 3, tokens_per_minute: 100000}", chain="limits, cache")
    async with start(text) as run:
        answers = [await chat(run, seed=1) for _ in range(4)]
        assert [headers.get("x-gemmapy-cache") for _, _, headers in answers] == ["miss", "hit", "hit", None]
        assert answers[-1][0] == 429
        assert await used(run, "tokens_per_minute") == answers[0][1]["usage"]["total_tokens"]


async def test_the_tokens_of_a_shared_generation_are_counted_once(start: Start) -> None:
    text = limits("{tokens_per_minute: 100000}", chain="limits, cache")
    async with start(text, Simulator(delay=0.01)) as run:
        answers = await asyncio.gather(*(chat(run, seed=1) for _ in range(5)))
        assert {headers["x-gemmapy-cache"] for _, _, headers in answers} <= {"miss", "shared", "hit"}
        await until_used(run, "tokens_per_minute", answers[0][1]["usage"]["total_tokens"])


async def test_callers_have_separate_limits(start: Start) -> None:
    async with start(KEYS + limits("{requests_per_minute: 2}")) as run:
        assert await statuses(run, 3, "ann") == [200, 200, 429]
        assert await statuses(run, 2, "bob") == [200, 200]


async def test_a_limit_for_all_is_shared_by_all_callers(start: Start) -> None:
    async with start(KEYS + limits("{per: all, requests_per_minute: 2}")) as run:
        assert await statuses(run, 1, "ann") + await statuses(run, 2, "bob") == [200, 200, 429]
        assert "for all calls together" in (await chat(run, "ann"))[1]["error"]["message"]


async def test_models_have_separate_counts_that_an_alias_cannot_evade(start: Start) -> None:
    text = limits("{per: [caller, model], requests_per_minute: 1}")
    async with start("models: {nick: {alias: demo}}\n" + text) as run:
        assert [await statuses(run, 1, model=one) for one in ("demo", "demo:latest", "DEMO", "nick")] == [
            [200],
            [429],
            [429],
            [429],
        ]
        assert await statuses(run, 1, model="demo-thinking") == [200]
        message = (await chat(run))[1]["error"]["message"]
        assert "for caller 'anonymous' and model 'demo:latest'" in message


async def test_rules_apply_to_the_matching_calls(start: Start) -> None:
    rules = (
        "{unless: {caller: [bob, 'ro*']}, requests_per_minute: 1}",
        "{match: {caller: bob}, requests_per_minute: 2}",
        "{per: all, match: {model: nick, route: chat}, unless: {caller: root}, requests_per_minute: 3}",
    )
    async with start(KEYS + "models: {nick: {alias: demo}}\n" + limits(*rules)) as run:
        assert await statuses(run, 2, "ann") == [200, 429]
        assert await statuses(run, 3, "bob") == [200, 200, 429]
        assert await statuses(run, 4, "root") == [200] * 4
        assert len(await limits_shown(run, "ann")) == 2
        assert len(await limits_shown(run, "root")) == 3


async def test_a_refused_call_uses_up_no_limit(start: Start) -> None:
    async with start(limits("{requests_per_minute: 5}", "{per: all, requests_per_minute: 1}")) as run:
        assert await statuses(run, 4) == [200, 429, 429, 429]
        assert {one["limits"]["requests_per_minute"]["used"] for one in await limits_shown(run)} == {1}


async def test_concurrent_calls_with_one_request_id_are_counted_separately(start: Start) -> None:
    async with start(limits("{at_once: 10, tokens_per_minute: 100000}"), Simulator(delay=0.005)) as run:

        async def one(number: int) -> int:
            asked = {"model": "demo", "messages": user(f"{number} " * (number + 1)), "max_tokens": 5 + number}
            async with run.http.post(
                f"{run.url}/v1/chat/completions", json=asked, headers={"x-request-id": "same"}
            ) as response:
                return int((await response.json())["usage"]["total_tokens"])

        tokens = await asyncio.gather(*map(one, range(6)))
        await until_used(run, "at_once", 0)
        assert await used(run, "tokens_per_minute") == sum(tokens)


async def test_a_reload_keeps_counts_even_if_the_limit_changes(start: Start) -> None:
    async with start(limits("{requests_per_minute: 2}")) as run:
        assert await statuses(run, 2) == [200, 200]
        run.configure(limits("{requests_per_minute: 3}"))
        assert await run.server.reload()
        assert await statuses(run, 2) == [200, 429]


async def test_every_route_and_dialect_is_counted(start: Start) -> None:
    async with start(limits("{requests_per_minute: 3, tokens_per_minute: 100000}")) as run:
        assert (await run.embed()).status == 200
        for path in ("/v1/completions", "/api/generate"):
            answered = await run.http.post(f"{run.url}{path}", json={"model": "demo", "prompt": "a"})
            await answered.read()
            assert answered.status == 200
        refused = await run.http.post(f"{run.url}/api/chat", json={"model": "demo", "messages": user("hi")})
        assert refused.status == 429 and "requests per minute" in (await refused.json())["error"]


async def test_openais_client_raises_its_rate_limit_error(start: Start) -> None:
    asked: Any = {"model": "demo", "messages": user("hi")}
    async with start(limits("{requests_per_minute: 1}")) as run, run.client() as client:
        raw = await client.chat.completions.with_raw_response.create(**asked)
        assert raw.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(**asked)
        assert refused.value.code == "rate_limit_exceeded"


async def test_without_a_rule_nothing_is_counted(start: Start) -> None:
    async with start(limits()) as run:
        status, _, headers = await chat(run)
        assert status == 200 and not any("ratelimit" in name for name in headers)
        assert await limits_shown(run) == []


# --- GET /api/limits ---------------------------------------------------------------------------------


async def test_callers_see_their_own_limits_and_admins_all(start: Start) -> None:
    rules = (
        "{requests_per_minute: 9, at_once: 4}",
        "{per: [caller, model], tokens_per_minute: 50000}",
        "{per: key, at_once: 3}",
    )
    async with start(KEYS + limits(*rules)) as run:
        await statuses(run, 2, "ann")
        await statuses(run, 1, "bob", model="demo-thinking")
        mine, all_of_them = await limits_shown(run, "ann"), await limits_shown(run, "root")
    requests = next(one for one in mine if "requests_per_minute" in one["limits"])
    assert requests["caller"] == "ann" and requests["rule"] == {"per": ["caller"]}
    figures = requests["limits"]["requests_per_minute"]
    assert (figures["limit"], figures["used"], figures["remaining"]) == (9, 2, 7) and 20 < figures["reset"] <= 61
    assert requests["limits"]["at_once"] == {"limit": 4, "used": 0, "remaining": 4}
    by_model = next(one for one in mine if "model" in one)
    assert by_model["model"] == "demo:latest" and by_model["limits"]["tokens_per_minute"]["used"] > 0
    assert {one.get("caller") for one in mine} == {"ann", None} and "bob" not in str(mine)
    assert {one.get("caller") for one in all_of_them} == {"ann", "bob", "root", None}


async def test_counts_by_model_show_a_caller_only_models_it_may_use(start: Start) -> None:
    """Other callers may have used any text as a model name."""
    keys = KEYS.replace("bob: bob-key", "bob: {key: bob-key, models: [demo]}")
    rules = ("{per: model, requests_per_minute: 9}", "{per: [route, model], at_once: 2}")
    async with start(keys + limits(*rules)) as run:
        for model in ("demo", "demo-thinking", "ann@home"):
            await chat(run, "ann", model=model)
        seen = {who: {one["model"] for one in await limits_shown(run, who)} for who in ("ann", "bob", "root")}
        assert seen["bob"] == {"demo:latest"}
        assert seen["ann"] == {"demo:latest", "demo-thinking:latest"}
        assert seen["root"] == {"demo:latest", "demo-thinking:latest", "ann@home:latest"}


async def test_other_callers_named_by_a_rule_are_shown_to_admins_only(start: Start) -> None:
    rules = (
        "{unless: {caller: bob}, match: {model: 'demo*'}, requests_per_minute: 9}",
        "{match: {caller: [ann, carl]}, at_once: 4}",
    )
    async with start(KEYS + limits(*rules)) as run:
        await chat(run, "ann")
        mine, all_of_them = await limits_shown(run, "ann"), await limits_shown(run, "root")
    assert sorted(map(str, (one["rule"] for one in mine))) == [
        "{'per': ['caller'], 'match': {'model': ['demo*']}}",
        "{'per': ['caller']}",
    ]
    assert "bob" not in str(mine) and "carl" not in str(mine)
    assert len({one["id"] for one in mine}) == 2
    assert "'unless': {'caller': ['bob']}" in str(all_of_them) and "carl" in str(all_of_them)


async def test_limits_are_paged(start: Start) -> None:
    names = [f"c{number}" for number in range(5)]
    keys = "keys: {root: {key: root-key, role: admin}, " + ", ".join(f"{one}: {one}-key" for one in names) + "}\n"
    async with start(keys + limits("{requests_per_minute: 9}")) as run:
        for one in names:
            await chat(run, one)
        seen, after, more = [], "", True
        while more:
            query = {"limit": "4", "after": after}
            async with run.http.get(f"{run.url}/api/limits", params=query, headers=key("root")) as response:
                page = await response.json()
            seen += [one["caller"] for one in page["data"]]
            after, more = page["last"], page["has_more"]
    assert seen == [*names, "root"]


@pytest.mark.parametrize("limit", ["0", "1001", "x", "-1", "²", "1" * 9])
async def test_a_wrong_page_size_is_named(start: Start, limit: str) -> None:
    async with start(limits("{at_once: 1}")) as run:
        response = await run.http.get(f"{run.url}/api/limits", params={"limit": limit})
        assert response.status == 400 and (await response.json())["error"]["param"] == "limit"


async def test_unknown_parameters_are_refused(start: Start) -> None:
    text = limits("{requests_per_minute: 9}", chain="limits, cache, retry")
    async with start(text.replace("plugins: {", "plugins: {retry: {}, ", 1)) as run:
        for method, path, sent in (
            ("GET", "/api/limits?user=bob", None),
            ("GET", "/api/retry/stats?user=bob", None),
            ("POST", "/api/cache/clear-expired", {"user": "bob"}),
        ):
            response = await run.http.request(method, f"{run.url}{path}", json=sent)
            error = (await response.json())["error"]
            assert (response.status, error["param"], error["code"]) == (400, "user", "unknown_parameter"), path


@pytest.mark.parametrize("stream", [True, False])
async def test_the_remaining_reader_of_a_shared_generation_pays_for_it(start: Start, stream: bool) -> None:
    rules = limits("{tokens_per_minute: 100000}", chain="limits, cache")
    stall = Fault("stall", after=5, until=(go := asyncio.Event()))
    async with start(rules, Simulator(faults=[stall])) as run:
        asked = {"model": "demo", "messages": user("hi"), "stream": stream, "max_tokens": 60, "seed": 3}
        first = asyncio.ensure_future(run.http.post(f"{run.url}/v1/chat/completions", json=asked))
        await until_used(run, "tokens_per_minute", 61)  # as reserved
        if stream:
            await (await first).content.readany()
        second = asyncio.ensure_future(run.http.post(f"{run.url}/v1/chat/completions", json=asked))
        await until_used(run, "tokens_per_minute", 122)
        if stream:
            await (await second).content.readany()
            (await first).close()
        else:
            first.cancel()
        await until_shared(run, 1)
        go.set()
        text = await (await second).text()
        pieces = (
            text.count('"content":"') if stream else (await cached_answer(run, asked))["usage"]["completion_tokens"]
        )
        async with asyncio.timeout(10):
            while not pieces <= await used(run, "tokens_per_minute") <= pieces + 40:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def cached_answer(run: Running, asked: dict[str, Any]) -> dict[str, Any]:
    """The same answer, which is in the cache by now."""
    _, body, _ = await chat(run, **asked)
    return body
