"""The cache in a running server, with the stock client and with raw requests."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Sequence
from typing import Any

import pytest

from plugins.cache.flight import Flight
from plugins.retry import Retry
from plugins.timeouts import TICK
from proxy import registry
from proxy.background import Background
from proxy.errors import ConfigError, UpstreamError
from proxy.stores.keyvalue import NewValue
from proxy.stores.memory import Memory
from proxy.types import Call, Chat, Reply
from proxy.upstreams.catalogue import Catalogue
from proxy.upstreams.demo import CATALOGUE, Fault, Model, Said, Simulator, running
from tests.clocks import jump, put_forward
from tests.conftest import ASK, HI, Running, Start
from tests.whole.asking import (
    Stream,
    asked,
    data_url,
    error_of,
    function,
    picture,
    said,
    schema,
    settled,
    streamed,
    until_shared,
    user,
    whole,
)

CACHE = "plugins: {cache: {}}\nchains: {chat: [cache], completions: [cache], embeddings: [cache]}\n"
KEYS = "keys: {alice: a-key, bob: b-key, ops: {key: o-key, role: admin}}\n"


def cache(more: str = "", chain: str = "cache") -> str:
    return f"plugins: {{cache: {{{more}}}, retry: {{wait: 0}}}}\nchains: {{chat: [{chain}], embeddings: [cache]}}\n"


def outcome(response: Any) -> str:
    return str(response.headers["x-gemmapy-cache"])


async def outcomes(run: Running, *bodies: dict[str, Any], **headers: str) -> list[str]:
    found = []
    for body in bodies:
        response = await run.http.post(f"{run.url}/v1/chat/completions", json={**ASK, **body}, headers=headers)
        assert response.status == 200, await response.text()
        await response.read()
        found.append(outcome(response))
    return found


# --- hits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
async def test_one_entry_serves_both_streams_and_whole_answers(start: Start, first: bool, second: bool) -> None:
    async with start(CACHE) as run:
        answers = [await run.chat(stream=stream, seed=1) for stream in (first, second)]
        texts = []
        for answer, stream in zip(answers, (first, second), strict=True):
            texts.append((await streamed(answer)).text() if stream else said(await whole(answer))["content"])
        assert [outcome(answer) for answer in answers] == ["miss", "hit"]
        assert texts[0] == texts[1] and "simulated" in texts[0]
        assert len(asked(run.ollama)) == 1
        assert answers[1].headers["age"] == "0"
        assert answers[0].headers["x-gemmapy-cache-key"] == answers[1].headers["x-gemmapy-cache-key"]


async def test_a_hit_is_streamed_in_pieces_or_in_the_original_ones_of_a_stream(start: Start) -> None:
    async with start(CACHE) as run:
        await run.chat(seed=1)
        replayed = await streamed(await run.chat(seed=1, stream=True))
        assert len([one for one in replayed.deltas() if one.get("content")]) > 5
        live = await streamed(await run.chat(seed=2, stream=True))
        again = await streamed(await run.chat(seed=2, stream=True))
        assert [one.get("content") for one in live.deltas()] == [one.get("content") for one in again.deltas()]


@pytest.mark.parametrize(
    ("body", "model"),
    [
        ({"tools": [function("weather")], "messages": user("weather in Oslo")}, "demo"),
        ({"tools": [function("weather")], "messages": user("weather in Oslo")}, "demo-rendered"),
        ({"messages": user("why?"), "reasoning_effort": "high"}, "demo-thinking"),
        ({"logprobs": True, "top_logprobs": 2}, "demo"),
        ({"response_format": schema({"name": {"type": "string"}})}, "demo"),
        ({"n": 3}, "demo"),
        ({"stop": ["no"]}, "demo"),
    ],
)
async def test_a_hit_equals_the_original_answer(start: Start, body: dict[str, Any], model: str) -> None:
    async with start(CACHE) as run:
        for stream in (False, True):
            documents = []
            for _ in range(2):
                response = await run.chat(model=model, stream=stream, seed=5, **body)
                documents.append(parts(Stream((await response.read()).decode())) if stream else await response.json())
            if not stream:
                for document in documents:
                    document.pop("id"), document.pop("created")
                    for choice in document["choices"]:
                        assert choice["finish_reason"]
            assert documents[0] == documents[1]
        assert len(asked(run.ollama)) == body.get("n", 1), "one generation and three hits"


def parts(stream: Stream) -> Any:
    """Everything in a stream that does not depend on how its text is split."""
    assert stream.done
    told: dict[tuple[int, str], Any] = {}
    for chunk in stream.chunks:
        for choice in chunk["choices"]:
            for name, value in choice["delta"].items():
                if name in ("content", "reasoning_content") and value:
                    told[choice["index"], name] = told.get((choice["index"], name), "") + value
                elif name == "tool_calls":
                    told.setdefault((choice["index"], name), []).extend(value)
            if choice["finish_reason"]:
                told[choice["index"], "finish"] = choice["finish_reason"]
    return told


async def test_a_hit_reports_its_usage_and_where_it_came_from(start: Start) -> None:
    async with start(CACHE) as run, run.client() as client:
        raw = [await client.chat.completions.with_raw_response.create(**ASK, seed=1) for _ in range(2)]
        one, two = [answer.parse() for answer in raw]
        assert one.usage == two.usage and one.usage and one.usage.completion_tokens > 0
        assert one.system_fingerprint == two.system_fingerprint
        for name in ("x-gemmapy-model", "x-gemmapy-upstream", "x-gemmapy-digest"):
            assert raw[0].headers[name] == raw[1].headers[name]


async def test_both_dialects_and_equivalent_requests_share_an_entry(start: Start) -> None:
    async with start(CACHE) as run:
        await run.chat(seed=1, temperature=1, tools=[function("f")])
        native = {"model": "DEMO:latest", "messages": HI, "stream": False, "tools": [function("f")]}
        native["options"] = {"temperature": 1.0, "seed": 1}
        response = await run.http.post(f"{run.url}/api/chat", json=native)
        assert outcome(response) == "hit" and (await response.json())["done"]
        spelled = json.dumps(
            {"tools": [function("f")], "seed": 1, "temperature": 1.0, "stream": False, **ASK}, indent=3
        )
        headers = {"Content-Type": "application/json"}
        response = await run.http.post(f"{run.url}/v1/chat/completions", data=spelled, headers=headers)
        assert outcome(response) == "hit"
        assert len(asked(run.ollama)) == 1


async def test_an_answer_is_a_hit_at_once_even_with_a_slow_store(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, put = asyncio.Event(), Memory.set

    async def slowly(store: Memory, news: Sequence[NewValue]) -> None:
        await ready.wait()
        await put(store, news)

    monkeypatch.setattr(Memory, "set", slowly)
    async with start(CACHE) as run:
        assert await outcomes(run, {}, {}, {"stream": True}) == ["miss", "hit", "hit"]
        assert await outcomes(run, {}, **{"Cache-Control": "max-age=0"}) == ["miss"]
        asyncio.get_running_loop().call_later(0.05, ready.set)
        told = await (await run.http.get(f"{run.url}/api/cache/stats")).json()
        assert told["entries"] == 1, "statistics wait for pending writes"
        await settled(run)
        assert await outcomes(run, {}) == ["hit"]


# --- misses ------------------------------------------------------------------------------------------

DIFFERENT: list[dict[str, Any]] = [
    {},
    {"messages": user("other")},
    {"messages": [{"role": "system", "content": "Be brief."}, *HI]},
    {"messages": [*HI, {"role": "assistant", "content": "a"}, *HI]},
    {"model": "demo-rendered"},
    {"temperature": 0.5},
    {"temperature": 0},
    {"top_p": 0.5},
    {"seed": 1},
    {"seed": 2},
    {"max_tokens": 100},
    {"stop": ["a"]},
    {"stop": ["b"]},
    {"presence_penalty": 0.5},
    {"frequency_penalty": 0.5},
    {"options": {"top_k": 3}},
    {"options": {"min_p": 0.1}},
    {"options": {"repeat_penalty": 1.5}},
    {"n": 2},
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 1},
    {"tools": [function("f")]},
    {"tools": [function("g")]},
    {"tools": [function("f", {"a": {"type": "string"}})]},
    {"tools": [function("f")], "tool_choice": "none"},
    {"tools": [function("f")], "tool_choice": "required"},
    {"tools": [function("f")], "parallel_tool_calls": False},
    {"response_format": {"type": "json_object"}},
    {"response_format": schema({"a": {"type": "string"}})},
    {"response_format": schema({"b": {"type": "string"}})},
    {"response_format": schema({"a": {"type": "string"}}, strict=False)},
]


async def test_everything_that_reaches_the_model_is_part_of_the_key(start: Start) -> None:
    """Leaving fields out of the key is the most common mistake of caches."""
    async with start(CACHE) as run:
        assert await outcomes(run, *DIFFERENT) == ["miss"] * len(DIFFERENT)
        assert await outcomes(run, *DIFFERENT) == ["hit"] * len(DIFFERENT)


async def test_thinking_and_images_are_part_of_the_key(start: Start) -> None:
    async with start(CACHE) as run:
        efforts = [{"model": "demo-thinking", "reasoning_effort": effort} for effort in ("low", "high", "none")]
        other = data_url().replace("iVBOR", "iVBOR", 1)[:-4] + "AAAA"
        pictures = [{"model": "demo-vision", "messages": picture(url)} for url in (data_url(), other)]
        assert await outcomes(run, *efforts, *pictures) == ["miss"] * 5
        assert await outcomes(run, *efforts, *pictures) == ["hit"] * 5


async def test_fields_that_do_not_reach_the_model_are_not_part_of_the_key(start: Start) -> None:
    async with start(CACHE) as run:
        told: list[dict[str, Any]] = [
            {},
            {"user": "u"},
            {"metadata": {"a": "b"}},
            {"stream": True},
            {"stream_options": None},
            {"verbosity": "low"},
        ]
        assert await outcomes(run, *told) == ["miss"] + ["hit"] * (len(told) - 1)


async def test_a_model_that_was_pulled_again_misses(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("proxy.upstreams.model_list.FRESH", "proxy.upstreams.catalogue.RECENT", "plugins.cache.plugin.RECENT"):
        monkeypatch.setattr(name, 0.0)
    ollama = Simulator()
    async with start(CACHE, ollama) as run:
        assert await outcomes(run, {}, {}) == ["miss", "hit"]
        again = [Model(one.name, one.capabilities, digest="f" * 64) for one in CATALOGUE]
        ollama.store = type(ollama.store)(tuple(again))
        async with asyncio.timeout(30):
            while len(asked(ollama)) < 2:  # until the refreshed list has the new digest
                await run.chat()
        assert await outcomes(run, {}) == ["hit"] and len(asked(ollama)) == 2


async def test_an_option_set_by_the_operator_is_part_of_the_key(start: Start) -> None:
    async with start(CACHE) as run:
        assert await outcomes(run, {}, {}) == ["miss", "hit"]
        run.configure(CACHE + "models: {demo: {num_ctx: 512}}\n")
        assert await run.server.reload()
        assert await outcomes(run, {}, {}) == ["miss", "hit"]
        run.configure(CACHE)
        assert await run.server.reload()
        assert await outcomes(run, {}) == ["hit"], "and the old entry is still there"


async def test_adding_a_plugin_that_only_measures_keeps_hits(start: Start) -> None:
    async with start(CACHE) as run:
        assert await outcomes(run, {}) == ["miss"]
        run.configure(CACHE.replace("{cache: {}}", "{cache: {}, metrics: {}}").replace("chat: [", "chat: [metrics, "))
        assert await run.server.reload()
        assert await outcomes(run, {}) == ["hit"]


async def test_callers_do_not_see_each_others_answers(start: Start) -> None:
    async with start(CACHE + KEYS) as run:
        for key in ("a-key", "b-key"):
            assert await outcomes(run, {}, {}, Authorization=f"Bearer {key}") == ["miss", "hit"]
    async with start(cache("share: global") + KEYS) as run:
        for key, told in (("a-key", ["miss", "hit"]), ("b-key", ["hit", "hit"])):
            assert await outcomes(run, {}, {}, Authorization=f"Bearer {key}") == told


async def test_sampled_answers_are_not_cached_if_configured(start: Start) -> None:
    async with start(cache("sampled: skip")) as run:
        assert (
            await outcomes(run, {}, {"temperature": 0.5}, {"temperature": 0}, {"seed": 3})
            == ["bypass"] * 2 + ["miss"] * 2
        )
        assert (
            await outcomes(run, {}, {"temperature": 0.5}, {"temperature": 0}, {"seed": 3})
            == ["bypass"] * 2 + ["hit"] * 2
        )


# --- what is not cached ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["error_line", "eof", "reset", "garbage"])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_broke_off_is_not_cached(start: Start, kind: Any, stream: bool) -> None:
    async with start(CACHE, Simulator(faults=[Fault(kind, after=2)], delay=0.005)) as run:
        first = await run.chat(stream=stream)
        await first.read()
        assert await outcomes(run, {}, {}) == ["miss", "hit"]


async def test_an_error_is_not_cached(start: Start) -> None:
    async with start(CACHE, Simulator(faults=[Fault("status"), Fault("status", status=503)])) as run:
        assert [(await run.chat()).status for _ in range(2)] == [502, 503]
        assert await outcomes(run, {}, {}) == ["miss", "hit"]


async def test_an_answer_cut_off_by_its_length_is_cached_only_if_configured(start: Start) -> None:
    async with start(CACHE) as run:
        assert await outcomes(run, {"max_tokens": 2}, {"max_tokens": 2}) == ["miss", "miss"]
    async with start(cache("keep_length: true")) as run:
        assert await outcomes(run, {"max_tokens": 2}, {"max_tokens": 2}) == ["miss", "hit"]


async def test_an_answer_that_is_too_large_is_not_cached(start: Start) -> None:
    async with start(cache("max_entry_bytes: 100")) as run:
        assert await outcomes(run, {}, {}) == ["miss", "miss"]


async def test_a_stream_abandoned_by_its_only_reader_ends_the_generation_and_is_not_cached(start: Start) -> None:
    async with start(CACHE, Simulator(faults=[Fault("stall", after=1)])) as run:
        response = await run.chat(stream=True)
        await response.content.readany()
        response.close()
        await run.ollama.until_abandoned(1)
        assert await outcomes(run, {}) == ["miss"]


# --- directives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("control", "told"),
    [
        ("no-cache", ["miss", "miss"]),
        ("no-store", ["bypass", "bypass"]),
        ("max-age=0", ["miss", "miss"]),
        ("max-age=60", ["hit", "hit"]),
        ("MAX-AGE=60, min-fresh=1", ["hit", "hit"]),
        ("only-if-cached", ["hit", "hit"]),
        ("only-if-cached, no-store", ["hit", "hit"]),
        ("nonsense", ["hit", "hit"]),
    ],
)
async def test_cache_control_of_a_request_is_honoured(start: Start, control: str, told: list[str]) -> None:
    async with start(CACHE) as run:
        await run.chat()
        assert await outcomes(run, {}, {}, **{"Cache-Control": control}) == told
        assert await outcomes(run, {}) == ["hit"], "the entry is kept, or replaced by a newer one"


async def test_directives_in_several_headers_are_combined(start: Start) -> None:
    """For example if a gateway adds one.  Source: RFC 9110, section 5.3."""
    async with start(CACHE) as run:
        await run.chat()
        headers = [("Cache-Control", "max-age=60"), ("Cache-Control", "no-store")]
        response = await run.http.post(f"{run.url}/v1/chat/completions", json=ASK, headers=headers)
        assert outcome(response) == "bypass"


async def test_only_if_cached_never_calls_the_model(start: Start) -> None:
    async with start(CACHE) as run:
        for path, body in (("chat/completions", ASK), ("embeddings", {"model": "demo-embed", "input": "x"})):
            for control in ("only-if-cached", "only-if-cached, no-store"):
                headers = {"Cache-Control": control}
                response = await run.http.post(f"{run.url}/v1/{path}", json=body, headers=headers)
                assert (await error_of(response, 504))["code"] == "not_cached"
                assert response.headers["x-should-retry"] == "false"
        assert asked(run.ollama) == asked(run.ollama, "/api/embed") == []


async def test_only_if_cached_without_a_lookup_is_a_504(start: Start) -> None:
    async with start(CACHE) as run:
        await run.chat(), await run.embed()
        for control, body in (("only-if-cached, no-cache", {}), ("only-if-cached", {"use_cache": False})):
            for path, asks in (("chat/completions", ASK), ("embeddings", {"model": "demo-embed", "input": "hi"})):
                asking = run.http.post(
                    f"{run.url}/v1/{path}", json={**asks, **body}, headers={"Cache-Control": control}
                )
                assert (await error_of(await asking, 504))["code"] == "not_cached"


async def test_only_if_cached_with_no_store_gives_cached_embeddings(start: Start) -> None:
    async with start(CACHE) as run:
        await run.embed()
        headers = {"Cache-Control": "only-if-cached, no-store"}
        body = {"model": "demo-embed", "input": "hi"}
        response = await run.http.post(f"{run.url}/v1/embeddings", json=body, headers=headers)
        assert (response.status, response.headers["x-gemmapy-cache"]) == (200, "hit")


async def test_a_field_of_the_body_can_turn_the_cache_off(start: Start) -> None:
    async with start(CACHE) as run:
        assert await outcomes(run, {"use_cache": False}, {"use_cache": False}) == ["bypass"] * 2
        assert await outcomes(run, {"use_cache": True}, {}) == ["miss", "hit"]
        assert (await error_of(await run.chat(use_cache="no"), 400))["param"] == "use_cache"


async def test_a_request_can_set_the_ttl_of_its_answer(start: Start) -> None:
    async with start(cache("max_ttl: 0.2")) as run:
        assert await outcomes(run, {}, **{"x-gemmapy-cache-ttl": "9999"}) == ["miss"]
        await asyncio.sleep(0.25)
        assert await outcomes(run, {}) == ["miss"]
        for wrong in ("soon", "-1", "0", "1e9", "nan"):
            headers = {"x-gemmapy-cache-ttl": wrong}
            response = await run.http.post(f"{run.url}/v1/chat/completions", json=ASK, headers=headers)
            assert (await error_of(response, 400))["param"] == "x-gemmapy-cache-ttl"


# --- shared generations ------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_equal_calls_at_once_share_one_generation(start: Start, stream: bool) -> None:
    async with start(CACHE, Simulator(faults=[Fault("stall", until=(go := asyncio.Event()))])) as run:
        calls = [asyncio.ensure_future(run.chat(stream=stream)) for _ in range(100)]
        await until_shared(run, 100)
        go.set()
        answers = await asyncio.gather(*calls)
        bodies = {(await answer.text()).partition('"choices"')[2] for answer in answers} if not stream else set()
        texts = {(await streamed(answer)).text() for answer in answers} if stream else set()
        assert len(bodies | texts) == 1
        assert sorted({outcome(answer) for answer in answers}) == ["miss", "shared"]
        assert len(asked(run.ollama)) == 1


async def test_a_reader_that_joins_late_gets_the_beginning_at_once_and_then_the_rest(start: Start) -> None:
    words = Said(pieces=tuple(f"w{number} " for number in range(30)))
    stall = Fault("stall", after=10, until=(go := asyncio.Event()))
    async with start(CACHE, Simulator(faults=[stall], say=lambda body: words)) as run:
        first = await run.chat(stream=True)
        early = b""
        while early.count(b'"content":"w') < 10:
            early += await first.content.readany()
        second = await run.chat(stream=True)
        at_once = await second.content.readany()
        assert outcome(second) == "shared" and at_once.count(b'"content":"w') == 10
        go.set()
        rest = Stream((at_once + await second.read()).decode())
        assert rest.done and rest.text() == "".join(words.pieces)
        assert Stream((early + await first.read()).decode()).text() == rest.text()
        assert len(asked(run.ollama)) == 1


@pytest.mark.parametrize("body", [{}, {"n": 2}])
async def test_a_stream_that_joins_a_whole_answer_gets_it_in_pieces(start: Start, body: dict[str, Any]) -> None:
    stall = Fault("stall", after=1, times=body.get("n", 1), until=(go := asyncio.Event()))
    async with start(CACHE, Simulator(faults=[stall])) as run:
        first = asyncio.ensure_future(run.chat(**body))
        await until_shared(run, 1)
        joining = asyncio.ensure_future(run.chat(stream=True, **body))
        await until_shared(run, 2)
        go.set()
        second = await joining
        stream = await streamed(second)
        assert outcome(second) == "shared" and len(asked(run.ollama)) == body.get("n", 1)
        document = await whole(await first)
        for choice in range(body.get("n", 1)):
            assert stream.text(choice) == said(document, choice)["content"]
            assert len([one for one in stream.deltas(choice) if one.get("content")]) > 5


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
async def test_a_whole_answer_that_joins_a_stream_keeps_its_own_time_limits(start: Start, path: str) -> None:
    text = "plugins: {cache: {}, timeouts: {total: 0.3}}\nchains: {chat: [CHAIN]}\n"
    words, limit = Said(pieces=("a ",) * 30), {"x-stainless-read-timeout": "0.3"}
    for chain, headers in (("cache", limit), ("timeouts, cache", {})):
        async with start(text.replace("CHAIN", chain), Simulator(delay=0.1, say=lambda body: words)) as run:
            first = await run.chat(stream=True)
            await first.content.readany()
            second = await run.http.post(f"{run.url}{path}", json={**ASK, "stream": False}, headers=headers)
            assert second.status == 504, await second.text()
            first.close()


async def test_the_generation_continues_when_its_first_caller_disconnects(start: Start) -> None:
    async with start(CACHE, Simulator(delay=0.01)) as run:
        first = await run.chat(stream=True)
        await first.content.readany()
        second = await run.chat(stream=True)
        first.close()
        assert (await streamed(second)).done
        assert run.ollama.abandoned == 0
        assert await outcomes(run, {}) == ["hit"]


async def test_the_generation_ends_with_its_last_caller(start: Start) -> None:
    async with start(CACHE, Simulator(faults=[Fault("stall")])) as run:
        calls = [asyncio.ensure_future(run.chat()) for _ in range(3)]
        await until_shared(run, 3)
        await run.ollama.until(lambda: run.ollama.running == 1)
        for call in calls:
            call.cancel()
        await run.ollama.until_abandoned(1)
        assert await outcomes(run, {}) == ["miss"], "the next call gets a generation of its own"


async def test_all_waiting_callers_get_a_failure_and_none_of_them_retries(start: Start) -> None:
    ollama = Simulator(faults=[Fault("slow_load", until=(go := asyncio.Event())), Fault("status", times=99)])
    async with start(CACHE, ollama) as run:
        calls = [asyncio.ensure_future(run.chat()) for _ in range(20)]
        await until_shared(run, 20)
        go.set()
        answers = await asyncio.gather(*calls)
        assert {answer.status for answer in answers} == {502}
        assert len(asked(ollama)) == 1


async def test_a_stream_that_breaks_off_breaks_off_for_all_readers(start: Start) -> None:
    async with start(CACHE, Simulator(faults=[Fault("error_line", after=4)], delay=0.01)) as run:
        streams = [await streamed(one) for one in await asyncio.gather(*(run.chat(stream=True) for _ in range(5)))]
        assert [bool(one.broken) for one in streams] == [True] * 5
        assert len({one.text() for one in streams}) == 1


async def test_sharing_leaves_nothing_behind(start: Start) -> None:
    async with start(CACHE, Simulator(delay=0.001)) as run:
        await asyncio.gather(*(run.chat(stream=number % 2 == 0, seed=number % 5) for number in range(40)))
        await settled(run)
        assert not [task for task in run.server.services.background.tasks if "shared answer" in task.get_name()]


# --- completions and embeddings ----------------------------------------------------------------------


async def test_completions_are_cached_too(start: Start) -> None:
    async with start(CACHE) as run, run.client() as client:
        raw = [
            await client.completions.with_raw_response.create(model="demo", prompt=["a", "b"], max_tokens=50, echo=echo)
            for echo in (False, False, True)
        ]
        assert [one.headers["x-gemmapy-cache"] for one in raw] == ["miss", "hit", "hit"]
        texts = [[choice.text for choice in one.parse().choices] for one in raw]
        assert texts[0] == texts[1] and texts[2] == ["a" + texts[0][0], "b" + texts[0][1]]


async def test_a_batch_with_one_new_text_embeds_only_that(start: Start) -> None:
    async with start(CACHE) as run:
        one = await run.embed(input=["a", "b", "c"])
        two = await run.embed(input=["c", "new", "a", "a"])
        three = await run.embed(input="b")
        documents = [await whole(answer) for answer in (one, two, three)]
        vectors = [[row["embedding"] for row in document["data"]] for document in documents]
        assert [outcome(answer) for answer in (one, two, three)] == ["miss", "miss", "hit"]
        assert two.headers["x-gemmapy-cached-inputs"] == "2 of 3"
        assert asked(run.ollama, "/api/embed")[1]["input"] == ["new"] and len(asked(run.ollama, "/api/embed")) == 2
        assert vectors[1][0] == vectors[0][2] and vectors[1][2] == vectors[1][3] == vectors[0][0]
        assert vectors[2][0] == vectors[0][1]
        assert [document["usage"]["prompt_tokens"] > 0 for document in documents] == [True] * 3


async def test_cached_embeddings_report_their_origin_and_the_tokens_saved(start: Start) -> None:
    async with start(CACHE + "models: {other: {alias: demo-embed}}\n") as run:
        bodies: list[dict[str, Any]] = [{"input": ["a b", "c"]}, {"input": ["c", "a b"], "model": "other"}]
        answers = [await run.embed(**body) for body in [*bodies, {"input": ["d", "c"]}]]
        assert [outcome(answer) for answer in answers] == ["miss", "hit", "miss"]
        for name in ("x-gemmapy-model", "x-gemmapy-upstream", "x-gemmapy-digest"):
            assert len({answer.headers[name] for answer in answers}) == 1
        first, second, _ = [(await whole(answer))["usage"]["prompt_tokens"] for answer in answers]
        alone = (await whole(await run.embed(input="c")))["usage"]["prompt_tokens"]
        told = await (await run.http.get(f"{run.url}/api/cache/stats")).json()
        assert list(told["models"]) == ["demo-embed:latest"] and first == second
        assert told["saved_prompt_tokens"] == second + 2 * alone and told["saved_completion_tokens"] == 0


async def test_the_age_of_cached_embeddings_is_that_of_the_oldest(start: Start) -> None:
    async with start(CACHE) as run:
        old = await run.embed(input="old")
        run.server.services.clock.time = lambda: time.time() + 60
        await run.embed(input="new")
        answers = [await run.embed(input=texts) for texts in ("new", ["new", "old"], ["new", "newest"])]
        assert [outcome(answer) for answer in answers] == ["hit", "hit", "miss"]
        assert [answer.headers.get("age") for answer in [old, *answers]] == [None, "0", "60", None]


async def test_dimensions_and_models_are_part_of_the_key_of_embeddings(start: Start) -> None:
    async with start(CACHE) as run:
        bodies: list[dict[str, Any]] = [{}, {"dimensions": 8}, {"encoding_format": "base64"}, {"dimensions": 8}]
        assert [outcome(await run.embed(**body)) for body in bodies] == ["miss", "miss", "hit", "hit"]


async def test_equal_batches_at_once_are_embedded_once(start: Start) -> None:
    async with start(CACHE) as run:
        await asyncio.gather(*(run.embed(input=["a", "b"]) for _ in range(20)))
        assert len(asked(run.ollama, "/api/embed")) == 1


# --- unavailable upstreams, and deadlines ------------------------------------------------------------


async def test_hits_are_served_while_the_upstream_is_down(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("proxy.upstreams.model_list.FRESH", "proxy.upstreams.catalogue.RECENT", "plugins.cache.plugin.RECENT"):
        monkeypatch.setattr(name, 0.0)
    async with running(Simulator()) as url:
        text = f"{CACHE}upstreams: {{local: {{ollama: '{url}'}}}}\n"
        stack = start(text)
        run = await stack.__aenter__()
        assert await outcomes(run, {}) == ["miss"]
    try:
        assert await outcomes(run, {}, {}) == ["hit", "hit"]
        assert (await run.chat(seed=9)).status == 502
    finally:
        await stack.__aexit__(None, None, None)


async def test_an_upstream_that_hangs_delays_one_hit_and_not_all(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []

    async def hanging(catalogue: Catalogue, name: str) -> str:
        waited.append(name)
        await asyncio.sleep(30)
        return ""

    async with start(CACHE) as run:
        monkeypatch.setattr("plugins.cache.plugin.RECENT", 0.0)
        assert await outcomes(run, {}) == ["miss"]
        monkeypatch.setattr("plugins.cache.plugin.RECENT", 60.0)
        monkeypatch.setattr(Catalogue, "stamp", hanging)
        assert await outcomes(run, *[{}] * 5) == ["hit"] * 5
    assert waited == ["demo"]


async def test_a_cancelled_generation_is_an_error_for_its_readers() -> None:
    async def broken(call: Call) -> Reply:
        raise asyncio.CancelledError

    flight, call = Flight(0.0, lambda _: None), Call(id="1", route="chat", model="m", ask=Chat(messages=()))
    flight.task = asyncio.ensure_future(flight.run(call, broken, Background()))
    with pytest.raises(UpstreamError, match="broken off"):
        await asyncio.wait_for(flight.joined(call), 30)
    await asyncio.gather(flight.task, return_exceptions=True)


async def test_a_finished_generation_leaves_no_reference_cycles(start: Start) -> None:
    async with start(CACHE) as run:
        await run.chat()
        gc.collect()
        gc.disable()
        try:
            for seed in range(3):
                await run.chat(seed=seed)
            assert not [one for one in gc.get_objects() if type(one) is Flight]
        finally:
            gc.enable()


async def test_each_reader_gets_its_own_copy_of_an_error() -> None:
    async def failing(call: Call) -> Reply:
        await asyncio.sleep(0)
        raise UpstreamError("no", "server")

    flight, call = Flight(0.0, lambda _: None), Call(id="1", route="chat", model="m", ask=Chat(messages=()))
    flight.task = asyncio.ensure_future(flight.run(call, failing, Background()))
    one, other = await asyncio.gather(flight.joined(call), flight.joined(call), return_exceptions=True)
    assert isinstance(one, UpstreamError) and isinstance(other, UpstreamError) and one is not other
    one.facts["attempts"] = "3"
    assert other.facts == {} and str(one) == str(other) == "no" and one.cause == "server"


async def test_retries_below_the_cache_respect_the_callers_deadline(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "plugins: {cache: {}, retry: {max_wait: 60}}\nchains: {chat: [cache, retry]}\n"
    monkeypatch.setattr(Retry, "wait", lambda *_: 60.0)
    async with start(text, Simulator(faults=[Fault("status", status=503)])) as run:
        headers = {"x-stainless-read-timeout": "50"}
        response = await run.http.post(f"{run.url}/v1/chat/completions", json=ASK, headers=headers)
        assert (await error_of(response, 503))["code"] == "upstream_overloaded", (
            "it must not wait for a retry past the deadline"
        )


@pytest.mark.parametrize("patience", [None, "300"])
async def test_the_deadline_of_a_shared_generation_is_that_of_its_last_reader(
    start: Start, patience: str | None
) -> None:
    text = "plugins: {cache: {}, timeouts: {}, retry: {}}\nchains: {chat: [cache, timeouts, retry]}\n"
    ollama = Simulator(
        say=lambda body: Said(pieces=("a ", "b ", "c ", "d ")),
        faults=[Fault("stall", after=1, until=(go := asyncio.Event()))],
    )
    async with start(text, ollama) as run:
        url, limit = f"{run.url}/v1/chat/completions", "x-stainless-read-timeout"
        first = asyncio.ensure_future(run.http.post(url, json=ASK, headers={limit: "60"}))
        await run.ollama.until(lambda: run.ollama.running == 1)
        joining = asyncio.ensure_future(run.http.post(url, json=ASK, headers={limit: patience} if patience else {}))
        await until_shared(run, 2)
        put_forward(run.server.services.clock, 61)
        jump(61)
        assert (await error_of(await first, 504))["code"] == "upstream_timeout"
        await asyncio.sleep(2 * TICK)  # until the deadlines have been checked again
        go.set()
        second = await joining
        assert outcome(second) == "miss" and said(await whole(second))["content"] == "a b c d ", (
            "the remaining reader counts as the miss"
        )
        assert len(asked(run.ollama)) == 1


async def test_only_if_cached_is_a_504_for_calls_that_are_never_cached(start: Start) -> None:
    async with start(cache("sampled: skip")) as run:
        headers = {"Cache-Control": "only-if-cached"}
        response = await run.http.post(f"{run.url}/v1/chat/completions", json=ASK, headers=headers)
        assert (await error_of(response, 504))["code"] == "not_cached" and asked(run.ollama) == []


async def test_a_chain_that_would_cache_wrong_answers_is_refused(start: Start) -> None:
    with pytest.raises(ConfigError, match="'cache' keeps answers and must come before 'retry'"):
        async with start(cache(chain="retry, cache")):
            pass
    text = "plugins: {cache: {}, loud: {use: 'tests.plugins.cache.test_cache:Loud'}}\nchains: {chat: [cache, loud]}\n"
    with pytest.raises(ConfigError, match="'loud' changes the request and must come before 'cache'"):
        async with start(text):
            pass


OUTSIDE = {"conversations", "documents", "experiments", "limits", "stored", "templates", "usage"}
"""Plugins that set the caller or change the request, and those that must see every answer."""
INSIDE = {"fallback", "retry"}
ANYWHERE = {"cache", "metrics", "timeouts", "traces"}


def test_every_plugin_says_on_which_side_of_the_cache_it_must_be() -> None:
    found = {name: registry.find(name) for name in registry.known()}
    sitting = {name for name, cls in found.items() if registry.sits(cls)}
    assert sitting == OUTSIDE | INSIDE | ANYWHERE, "add a new plugin to one of the sets"
    assert {name for name in sitting if list(registry.out_of_place(name, ["cache"], found))} == OUTSIDE
    assert {name for name in sitting if list(registry.out_of_place("cache", [name], found))} == INSIDE


async def test_an_undeclared_store_is_a_configuration_error_with_its_line(start: Start) -> None:
    told = r"proxy.yaml:1: plugins.cache: no store is called 'fast'; declare it under `stores`, or name one of: memory"
    with pytest.raises(ConfigError, match=told):
        async with start(cache("store: fast")):
            pass


class Loud:
    """A plugin that declares that it changes the request."""

    place = "changes"

    from proxy.config import Strict

    class Settings(Strict):
        pass

    def __init__(self, settings: Any, host: Any) -> None:
        pass

    async def __call__(self, call: Any, call_next: Any) -> Any:
        return await call_next(call)
