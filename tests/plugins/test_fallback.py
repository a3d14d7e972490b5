"""The plugin `fallback` in a running server, with models that fail."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, ClassVar

import aiohttp
import pytest

from proxy.announcements import Attempt
from proxy.config import Strict
from proxy.errors import ConfigError, UpstreamError
from proxy.host import Host
from proxy.types import Call, Handler, Reply
from proxy.upstreams.demo import CATALOGUE, Fault, Model, Said, Simulator, running
from tests.clocks import jump
from tests.conftest import Running, Start
from tests.whole.asking import asked, dead_url, error_of, said, streamed, user, whole

SPARE = Model("spare:latest", frozenset({"completion", "tools"}), context=32_768)
MODELS = (*CATALOGUE, SPARE)


def config(settings: str, chain: str = "fallback", retry: str = "{wait: 0, attempts: 2}") -> str:
    return (
        f"plugins: {{fallback: {settings}, retry: {retry}, cache: {{}}}}\n"
        f"chains: {{chat: [{chain}], embeddings: [{chain}], completions: [{chain}]}}\n"
    )


SPARED = "{models: {demo: [spare]}}"


def failing(*faults: Fault, **more: Any) -> Simulator:
    return Simulator(models=MODELS, faults=faults, **more)


def models_asked(ollama: Simulator) -> list[str]:
    return [body["model"] for body in asked(ollama)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["status", "error_line", "eof", "reset", "garbage", "load_failure"])
async def test_another_model_answers_if_the_requested_one_fails(start: Start, stream: bool, kind: Any) -> None:
    async with start(config(SPARED), failing(Fault(kind))) as run:
        response = await run.chat(stream=stream)
        text = (await streamed(response)).text() if stream else said(await whole(response))["content"]
    assert "simulated" in text
    assert response.headers["x-gemmapy-model"] == "spare:latest"
    assert (
        response.headers["x-gemmapy-fallback"].startswith("demo (upstream_")
        and "spare" in response.headers["x-gemmapy-fallback"]
    )
    assert response.headers["x-gemmapy-attempts"] == "2"


async def test_without_failures_there_is_no_header(start: Start) -> None:
    async with start(config(SPARED), failing()) as run:
        response = await run.chat()
        assert response.headers["x-gemmapy-model"] == "demo:latest"
        assert not {"x-gemmapy-fallback", "x-gemmapy-attempts"} & set(response.headers)


async def test_each_model_is_retried(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    faults = [Fault("status", times=3)]
    with caplog.at_level(logging.WARNING, "plugins.fallback"):
        async with start(config(SPARED, "fallback, retry"), failing(*faults)) as run:
            response = await run.chat()
            assert models_asked(run.ollama) == ["demo:latest"] * 2 + ["spare:latest"] * 2
    assert response.status == 200 and response.headers["x-gemmapy-attempts"] == "4"
    assert "demo (upstream_server), spare" in caplog.text


async def test_if_all_models_fail_the_error_lists_them(start: Start) -> None:
    settings = "{models: {demo: [spare, demo-rendered]}}"
    async with start(config(settings, "fallback, retry"), failing(Fault("status", times=99))) as run:
        response = await run.chat()
        error = await error_of(response, 502)
    for name in ("demo (upstream_server)", "spare (upstream_server)", "demo-rendered (upstream_server)"):
        assert name in error["message"] and name in response.headers["x-gemmapy-fallback"]
    assert response.headers["x-gemmapy-attempts"] == "6" and response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("others", "body", "why"),
    [
        ("nobody", {}, "model_not_found"),
        ("demo-embed", {}, "model_not_capable"),
        ("tiny", {"messages": user("word " * 1000)}, "context_length_exceeded"),
    ],
)
async def test_a_fallback_that_cannot_serve_the_call_is_skipped_and_does_not_hide_the_failure(
    start: Start, others: str, body: dict[str, Any], why: str
) -> None:
    """Otherwise the client would get an error about its request instead of the server's failure."""
    tiny = "models: {tiny: {num_ctx: 512}}\n"
    models = (*MODELS, Model("tiny:latest", frozenset({"completion"})))
    settings = f"{{models: {{demo: [{others}]}}}}"
    async with start(config(settings) + tiny, Simulator(models=models, faults=[Fault("status")])) as run:
        response = await run.chat(**body)
        error = await error_of(response, 502)
        assert error["code"] == "upstream_server" and error["param"] is None
        assert response.headers["x-gemmapy-fallback"] == f"demo (upstream_server), {others} ({why})"
    settings = f"{{models: {{demo: [{others}, spare]}}}}"
    async with start(config(settings) + tiny, Simulator(models=models, faults=[Fault("status")])) as run:
        response = await run.chat(**body)
        assert response.status == 200 and response.headers["x-gemmapy-model"] == "spare:latest"


async def test_a_stream_that_has_begun_is_not_switched(start: Start) -> None:
    async with start(config(SPARED), failing(Fault("error_line", after=3), delay=0.01)) as run:
        stream = await streamed(await run.chat(stream=True))
        assert stream.broken and stream.text() and models_asked(run.ollama) == ["demo:latest"]


@pytest.mark.parametrize("model", ["spare", "SPARE:latest", "other"])
async def test_a_model_is_not_its_own_fallback(start: Start, model: str) -> None:
    settings = "{default: [spare], first_token: 0.01}"
    text = config(settings) + "models: {other: {alias: spare}}\n"
    async with start(text, failing(Fault("status"), Fault("stall", seconds=0.2))) as run:
        response = await run.chat(model=model)
        assert "Tried" not in (await error_of(response, 502))["message"]
        assert "x-gemmapy-fallback" not in response.headers and models_asked(run.ollama) == ["spare:latest"]
        assert (await streamed(await run.chat(model=model, stream=True))).done, (
            "and no time limit applies, as there is no fallback"
        )


@pytest.mark.parametrize(
    "body",
    [{"model": "nobody"}, {"temperature": 9}, {"model": "demo-embed"}, {"messages": []}, {"logit_bias": {"1": 1}}],
)
async def test_an_invalid_request_has_no_fallback(start: Start, body: dict[str, Any]) -> None:
    async with start(config("{default: [spare]}"), failing()) as run:
        assert 400 <= (await run.chat(**body)).status < 500
        assert "spare:latest" not in models_asked(run.ollama)


async def test_an_overlong_prompt_goes_to_a_model_with_a_larger_context_if_configured(start: Start) -> None:
    long = user("word " * 12_000)
    larger = config("{models: {demo: [{model: spare, on: [context_length]}]}}") + "models: {spare: {num_ctx: 32768}}\n"
    async with start(larger, failing()) as run:
        response = await run.chat(messages=long)
        assert response.status == 200, await response.text()
        assert response.headers["x-gemmapy-fallback"] == "demo (context_length_exceeded), spare"
    async with start(config(SPARED), failing()) as run:
        assert (await error_of(await run.chat(messages=long), 400))["code"] == "context_length_exceeded"
    async with start(larger, failing(Fault("status"))) as run:
        assert (await run.chat()).status == 502, "and other failures do not lead there"


async def slow_start(run: Running) -> aiohttp.ClientResponse:
    """The response to a streamed call that Ollama has not begun to answer after half a minute."""
    asking = asyncio.ensure_future(run.chat(stream=True))
    await run.ollama.until(lambda: run.ollama.running == 1)
    jump(31)
    return await asking


async def test_a_stream_that_does_not_begin_in_time_goes_to_another_model(start: Start) -> None:
    settings = "{models: {demo: [spare]}, first_token: 30}"
    text = config(settings) + "streams: {heartbeat: 0}\n"
    async with start(text, failing(Fault("stall"))) as run:
        response = await slow_start(run)
        assert (await streamed(response)).done
        assert response.headers["x-gemmapy-fallback"] == "demo (first_token_timeout), spare"
        await run.ollama.until_abandoned(1)


async def test_a_stream_without_a_fallback_may_begin_late(start: Start) -> None:
    settings = "{models: {demo: [{model: spare, on: [context_length]}]}, first_token: 0.05}"
    async with start(config(settings), failing(Fault("stall", seconds=0.2))) as run:
        assert (await streamed(await run.chat(stream=True))).done


async def test_a_shared_failure_keeps_a_separate_message_for_each_call(start: Start) -> None:
    """All calls that wait for one list of models get its failure, and each adds its own details to it."""
    text = config("{default: [spare]}", "fallback, retry") + f"upstreams: {{gone: {{ollama: '{dead_url()}'}}}}\n"
    async with start(text) as run:
        answers = [await run.chat() for _ in range(5)]
        assert len({answer.headers["x-gemmapy-attempts"] for answer in answers}) == 1
        assert len({(await error_of(answer, 502))["message"] for answer in answers}) == 1


async def test_an_unknown_model_has_a_fallback_if_configured(start: Start) -> None:
    async with start(config("{models: {gone: [spare]}, on: [model_not_found]}"), failing()) as run:
        assert (await run.chat(model="gone")).headers["x-gemmapy-model"] == "spare:latest"
        assert (await run.chat(model="other")).status == 404


async def test_the_same_model_at_another_upstream_can_be_a_fallback(start: Start) -> None:
    async with running(Simulator()) as spare:
        text = config("{default: [{upstream: spare}]}", "fallback, retry", "{wait: 0, attempts: 1}")
        text += f"upstreams: {{first: {{ollama: '{dead_url()}'}}, spare: {{ollama: '{spare}'}}}}\n"
        text += "models: {demo: {upstream: first}, demo-embed: {upstream: first}}\n"
        async with start(text) as run:
            response = await run.chat()
            assert response.headers["x-gemmapy-upstream"] == "spare"
            assert response.headers["x-gemmapy-fallback"] == "demo (upstream_connect), demo at spare"
            embedded = await run.embed()
            assert embedded.status == 200 and embedded.headers["x-gemmapy-upstream"] == "spare"


async def test_embeddings_never_come_from_another_model(start: Start) -> None:
    async with start(config("{default: [spare]}"), failing(Fault("status"))) as run:
        assert (await run.embed()).status == 502
        assert [body["model"] for body in asked(run.ollama, "/api/embed")] == ["demo-embed:latest"]


async def test_a_full_queue_counts_as_overloaded(start: Start) -> None:
    stall = Fault("stall", after=1, until=(go := asyncio.Event()))
    async with running(Simulator(faults=[stall])) as busy, running(Simulator(models=MODELS)) as spare:
        hosts = f"busy: {{ollama: '{busy}', slots: 1, line: {{most: 1, wait: 0.05}}}}, spare: {{ollama: '{spare}'}}"
        text = config("{models: {demo: [{upstream: spare}]}}") + f"upstreams: {{{hosts}}}\n"
        async with start(text) as run:
            first = await run.chat(stream=True)
            second = await run.chat()
            assert second.headers["x-gemmapy-fallback"] == "demo (queue_timeout), demo at spare"
            assert second.headers["x-gemmapy-attempts"] == "1", "a call that stayed in the queue was sent nowhere"
            go.set()
            await first.read()


async def test_every_error_that_leads_to_a_fallback_counts_as_an_attempt(start: Start) -> None:
    """Even if no upstream has failed: an overlong prompt, an unknown model, or a full queue."""
    on = "{models: {gone: [spare], demo: [spare]}, on: [model_not_found, context_length]}"
    text = config(on, "fallback, retry") + "models: {spare: {num_ctx: 32768}}\n"
    async with start(text, failing()) as run:
        assert (await run.chat(model="gone")).status == 200
        assert (await run.chat(messages=user("word " * 12_000))).status == 200
        assert (await run.chat(temperature=9)).status == 400 and (await run.chat(model="other")).status == 404
        told = await whole(await run.http.get(f"{run.url}/api/retry/stats"))
    assert (told["attempts"], told["failures"], told["fallbacks"]) == (4, 2, 2)
    assert told["errors"] == {"model_not_found": 1, "context_length_exceeded": 1}


async def test_the_same_model_at_the_same_upstream_is_tried_only_once(start: Start) -> None:
    text = config("{default: [{upstream: local}, spare, {model: spare, upstream: local}]}")
    async with start(text, failing(Fault("status", times=99))) as run:
        assert (
            "Tried: demo (upstream_server), spare (upstream_server)."
            in (await error_of(await run.chat(), 502))["message"]
        )
        assert models_asked(run.ollama) == ["demo:latest", "spare:latest"]


async def test_an_invalid_flag_is_refused_although_the_cache_could_answer(start: Start) -> None:
    async with start(config(SPARED, "cache, fallback, retry")) as run:
        await whole(await run.chat())
        await run.settled()
        assert (await run.chat()).headers["x-gemmapy-cache"] == "hit"
        for flag in ("use_retry", "use_cache"):
            assert (await error_of(await run.chat(**{flag: "no"}), 400))["param"] == flag
            assert (await run.embed(**{flag: 1})).status == 400
        native = {"model": "demo", "messages": user("hi"), "stream": False, "use_retry": 1}
        assert (await run.http.post(f"{run.url}/api/chat", json=native)).status == 400


async def test_an_answer_of_a_fallback_is_not_cached(start: Start) -> None:
    async with start(config(SPARED, "cache, fallback"), failing(Fault("status"))) as run:
        told = [
            (one.headers["x-gemmapy-model"], one.headers["x-gemmapy-cache"])
            for one in [await run.chat() for _ in range(3)]
        ]
    assert told == [("spare:latest", "miss"), ("demo:latest", "miss"), ("demo:latest", "hit")]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ("{default: [{upstream: nowhere}]}", "no upstream is called 'nowhere'"),
        ("{default: [{}]}", "a fallback names a `model`, an `upstream`, or both"),
        ("{on: [sometimes]}", "Input should be"),
    ],
)
async def test_an_invalid_setting_is_a_configuration_error(start: Start, settings: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        async with start(config(settings)):
            pass


async def test_the_answer_names_the_fallback_model(start: Start) -> None:
    ollama = failing(Fault("status"), say=lambda body: Said(pieces=(body["model"],)))
    async with start(config(SPARED), ollama) as run:
        document = await whole(await run.chat())
        assert said(document)["content"] == "spare:latest" and document["model"] == "demo", (
            "the name as it was requested"
        )


async def test_fallbacks_of_a_model_apply_to_its_aliases(start: Start) -> None:
    text = config(SPARED) + "models: {gpt-4o: {alias: demo}}\n"
    async with start(text, failing(Fault("status"))) as run:
        response = await run.chat(model="gpt-4o")
    assert response.status == 200 and response.headers["x-gemmapy-model"] == "spare:latest"


class Ear:
    """A plugin that listens to every attempt."""

    heard: ClassVar[list[Attempt]] = []

    class Settings(Strict):
        pass

    def __init__(self, settings: Settings, host: Host) -> None:
        self.heard.clear()
        host.on(Attempt, self.heard.append)

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        return await call_next(call)


@pytest.mark.parametrize(
    ("chain", "failures", "told"),
    [
        ("fallback", 0, [("demo:latest", 1, "")]),
        ("fallback", 1, [("demo:latest", 1, "upstream_server"), ("spare:latest", 1, "")]),
        (
            "fallback, retry",
            2,
            [("demo:latest", 1, "upstream_server"), ("demo:latest", 2, "upstream_server"), ("spare:latest", 1, "")],
        ),
        ("retry, fallback", 1, [("demo:latest", 1, "upstream_server"), ("spare:latest", 1, "")]),
        ("retry", 1, [("demo:latest", 1, "upstream_server"), ("demo:latest", 2, "")]),
    ],
)
async def test_every_attempt_is_announced_once(
    start: Start, chain: str, failures: int, told: list[tuple[str, int, str]]
) -> None:
    text = config(SPARED, f"ear, {chain}").replace("cache: {}", "ear: {use: 'tests.plugins.test_fallback:Ear'}")
    async with start(text, failing(Fault("status", times=failures)) if failures else failing()) as run:
        response = await run.chat()
        assert response.status == 200, await response.text()
    assert [(one.model, one.number, one.error) for one in Ear.heard] == told
    assert {one.upstream for one in Ear.heard} == {"local"} and all(one.seconds > 0 for one in Ear.heard)


@pytest.mark.parametrize("chain", ["fallback", "fallback, retry", "fallback, twice, retry"])
async def test_an_attempt_without_an_alternative_is_announced_once(start: Start, chain: str) -> None:
    use = "ear: {use: 'tests.plugins.test_fallback:Ear'}, twice: {use: 'tests.plugins.test_fallback:Twice'}"
    async with start(config("{}", f"ear, {chain}").replace("cache: {}", use)) as run:
        assert (await run.chat()).status == 200
    assert [(one.model, one.number, one.error) for one in Ear.heard] == [("demo:latest", 1, "")] * (
        1 + ("twice" in chain)
    )


class Twice:
    """A plugin that makes two concurrent calls, and takes the first answer."""

    class Settings(Strict):
        pass

    def __init__(self, settings: Settings, host: Host) -> None:
        pass

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        first, second = await asyncio.gather(call_next(call), call_next(call))
        await second.aclose()
        return first


@pytest.mark.parametrize("chain", ["twice, fallback, retry", "twice, retry", "fallback, twice, retry"])
async def test_concurrent_attempts_are_each_announced(start: Start, chain: str) -> None:
    use = "ear: {use: 'tests.plugins.test_fallback:Ear'}, twice: {use: 'tests.plugins.test_fallback:Twice'}"
    async with start(config(SPARED, f"ear, {chain}").replace("cache: {}", use)) as run:
        response = await run.chat()
        assert response.status == 200, await response.text()
    assert [(one.model, one.number, one.error) for one in Ear.heard] == [("demo:latest", 1, "")] * 2


async def test_a_stream_that_did_not_begin_in_time_counts_as_an_attempt(start: Start) -> None:
    text = config("{models: {demo: [spare]}, first_token: 30}", "ear, fallback, retry")
    text = text.replace("cache: {}", "ear: {use: 'tests.plugins.test_fallback:Ear'}")
    async with start(text, failing(Fault("stall"))) as run:
        assert (await streamed(await slow_start(run))).done
    assert [(one.model, one.error) for one in Ear.heard] == [("demo", "first_token_timeout"), ("spare:latest", "")]


class Turning:
    """Inside, turns a cancellation into an upstream error; outside, counts pending cancellations."""

    counted: ClassVar[list[int]] = []

    class Settings(Strict):
        outer: bool = False

    def __init__(self, settings: Settings, host: Host) -> None:
        self.outer = settings.outer

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        try:
            return await call_next(call)
        except asyncio.CancelledError:
            if self.outer:
                raise
            raise UpstreamError("It was cut.", "cut") from None
        finally:
            if self.outer and (task := asyncio.current_task()) is not None:
                self.counted.append(task.cancelling())


async def test_a_timeout_turned_into_another_error_leaves_no_pending_cancellation(start: Start) -> None:
    """Otherwise an outer time limit would not recognise its own cancellation."""
    Turning.counted.clear()
    use = "use: 'tests.plugins.test_fallback:Turning'"
    text = config("{models: {demo: [spare]}, first_token: 30}", "out, fallback, in")
    text = text.replace("cache: {}", f"out: {{{use}, outer: true}}, in: {{{use}}}")
    text += "streams: {heartbeat: 0}\n"
    async with start(text, failing(Fault("stall"))) as run:
        response = await slow_start(run)
        assert (await streamed(response)).done
        assert response.headers["x-gemmapy-fallback"] == "demo (upstream_cut), spare"
    assert Turning.counted == [0]
