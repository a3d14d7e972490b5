"""What a call used is announced once, however it ended."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from plugins.retry import Retry
from proxy.announcements import CallEnded
from proxy.config import Strict
from proxy.errors import TooMany
from proxy.host import Host
from proxy.meter import metered
from proxy.streams import replay
from proxy.types import Call, Events, Finish, Handler, Reply, Sources, Text, ToolCalled, Usage
from proxy.upstreams.demo import Fault, Said, Simulator
from tests.conftest import ASK, Late, Running, Start
from tests.whole.asking import PNG, data_url, until_shared

TOLD: list[CallEnded] = []


class Metering:
    class Settings(Strict):
        full: bool = False

    def __init__(self, settings: Settings, host: Host) -> None:
        self.host = host
        self.full = settings.full
        self.listen()

    def listen(self) -> None:
        self.host.on(CallEnded, TOLD.append)

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        return await metered(call, self.refusing if self.full else call_next, self.host)

    async def refusing(self, call: Call) -> Reply:
        raise TooMany("full", code="full")


class Calling(Metering):
    """Answers by itself with a tool call, without token counts."""

    async def refusing(self, call: Call) -> Reply:
        return Reply.of(replay([ToolCalled("1", "look", "x" * 396), Finish("tool_calls")]))


@pytest.fixture(autouse=True)
def empty_record() -> None:
    TOLD[:] = []


async def until(so: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not so():  # noqa: ASYNC110  (the announcement follows the answer)
            await asyncio.sleep(0.001)


async def ended() -> CallEnded:
    await until(lambda: bool(TOLD))
    (one,) = TOLD
    return one


def config(**settings: Any) -> str:
    two = ", ".join(f"{name}: {value}" for name, value in settings.items())
    return f"plugins: {{one: {{use: '{__name__}:Metering', {two}}}, two: {{use: '{__name__}:Second'}}}}\n" + (
        "chains: {chat: [one], embeddings: [one], completions: [one]}\n"
    )


class Second(Metering):
    """A second metering plugin in the same chain, whose announcements must not be duplicates."""

    def listen(self) -> None:
        """Listen to nothing."""


CACHED = config().replace("two: {", "cache: {}, two: {").replace(": [one]", ": [one, cache]")
DOUBLE = config().replace("[one]", "[one, two]")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_announced_once_with_its_upstreams_counts(start: Start, stream: bool) -> None:
    async with start(DOUBLE) as run:
        response = await run.chat(
            stream=stream, user="ann", **({"stream_options": {"include_usage": True}} if stream else {})
        )
        await response.read()
        one = await ended()
    assert (one.asked, one.route, one.stream, one.finish, one.error) == ("demo", "chat", stream, "stop", "")
    assert one.model == "demo:latest" and one.upstream == "local" and one.estimated == ()
    assert one.prompt_tokens and one.completion_tokens and one.eval_ns and one.first_ns and one.total_ns >= one.first_ns
    assert one.about["user"] == "ann" and one.tags == {}


async def test_the_cost_of_a_shared_answer_is_announced_for_the_call_that_started_it(start: Start) -> None:
    text = (
        config()
        .replace("two: {", "cache: {}, retry: {wait: 0}, two: {")
        .replace("chat: [one]", "chat: [one, cache, retry]")
    )
    stall = Fault("stall", until=(go := asyncio.Event()))
    async with start(f"{text}upstreams: {{local: {{ollama: $OLLAMA, slots: 1}}}}\n", Simulator(faults=[stall])) as run:
        before = asyncio.ensure_future(run.chat(seed=1))
        await run.ollama.until(lambda: run.ollama.running == 1)
        run.ollama.faults.append(Fault("status"))
        calls = [asyncio.ensure_future(run.chat()) for _ in range(5)]
        await until_shared(run, 5)
        go.set()
        answers = await asyncio.gather(*calls, before)
        assert {answer.status for answer in answers} == {200}
    shared = [one for one in TOLD if one.cache == "shared"]
    (made,) = [one for one in TOLD if one.attempts == 2]
    assert len(shared) == 4 and made.cache == "miss"
    assert [(one.attempts, one.queue_ns) for one in shared] == [(0, 0)] * 4


@pytest.mark.parametrize("text", [config(), CACHED])
async def test_embeddings_are_announced(start: Start, text: str) -> None:
    async with start(text) as run:
        assert (await run.embed()).status == 200
        one = await ended()
    assert (one.route, one.finish, one.error) == ("embeddings", "stop", "") and one.prompt_tokens and one.load_ns


async def test_a_refused_call_used_nothing(start: Start) -> None:
    async with start(config(full="true")) as run:
        assert (await run.chat()).status == 429
        one = await ended()
    assert (one.error, one.finish, one.first_ns) == ("full", "", None)
    assert (one.prompt_tokens, one.completion_tokens, one.estimated) == (None, None, ())
    assert one.attempts == 0


async def test_a_stream_that_breaks_off_used_what_it_had_delivered(start: Start) -> None:
    async with start(config(), Simulator(faults=[Fault("eof", after=3)])) as run:
        await (await run.chat(stream=True)).read()
        one = await ended()
    assert one.error == "upstream_cut" and one.finish == ""
    assert one.completion_tokens == 3 and set(one.estimated) == {"prompt_tokens", "completion_tokens"}
    assert one.prompt_tokens == 1


async def test_a_client_that_disconnects_is_announced_as_such(start: Start) -> None:
    async with start(config(), Simulator(faults=[Fault("stall", after=2)])) as run:
        response = await run.http.post(
            f"{run.url}/v1/chat/completions", json={**ASK, "stream": True, "max_tokens": 500}
        )
        await response.content.readany()
        response.close()
        one = await ended()
    assert (one.error, one.finish) == ("client_left", "")


@pytest.mark.parametrize("text", [config(), CACHED])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_cut_off_by_shutdown_does_not_count_as_a_disconnected_client(
    start: Start, text: str, stream: bool
) -> None:
    async with start(f"{text}listen: {{port: 0, drain: 0}}\n", Simulator(faults=[Fault("stall", after=2)])) as run:
        asking = asyncio.ensure_future(run.chat(stream=stream, max_tokens=500))
        if stream:
            await (await asking).content.readany()
        await run.ollama.until(lambda: run.ollama.running == 1)
    one = await ended()
    assert (one.error, one.finish, one.attempts) == ("server_stopped", "", 1)
    answer = await asking
    assert stream or answer.status == 503


@asynccontextmanager
async def disconnecting(run: Running, upstreams: int, **body: Any) -> AsyncIterator[None]:
    """Make a call; its client disconnects after the block, which begins once `upstreams` requests are running."""
    asking = asyncio.ensure_future(run.chat(seed=1, **body))
    await run.ollama.until(lambda: run.ollama.running == upstreams)
    yield
    asking.cancel()


@pytest.mark.parametrize("text", [config(), CACHED])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_disconnects_before_any_output_has_used_the_prompt(
    start: Start, text: str, stream: bool
) -> None:
    async with start(text, Simulator(faults=[Fault("stall")])) as run:
        async with disconnecting(run, 1, stream=stream, messages=[{"role": "user", "content": "x" * 40}]):
            pass
        one = await ended()
    assert (one.error, one.attempts, one.model) == ("client_left", 1, "demo:latest")
    assert (one.prompt_tokens, one.completion_tokens, one.estimated) == (10, None, ("prompt_tokens",))


async def test_a_call_that_timed_out_has_used_the_prompt(start: Start, late: Late) -> None:
    text = config().replace("two: {", "timeouts: {total: 600}, two: {").replace("chat: [one]", "chat: [one, timeouts]")
    async with start(text, Simulator(faults=[Fault("stall"), Fault("status", status=503)])) as run:
        asking = asyncio.ensure_future(run.chat())
        await run.ollama.until(lambda: run.ollama.running == 1)
        await late(run)
        assert (await asking).status == 504
        given_up = await ended()
        TOLD.clear()
        assert (await run.chat()).status == 503
        refused = await ended()
    assert (given_up.prompt_tokens, given_up.estimated, given_up.attempts) == (1, ("prompt_tokens",), 1)
    assert (refused.prompt_tokens, refused.estimated, refused.attempts) == (None, (), 1), (
        "the upstream refused to work on it"
    )


async def test_of_callers_sharing_an_answer_the_last_to_disconnect_has_used_the_prompt(start: Start) -> None:
    async with start(CACHED, Simulator(faults=[Fault("stall")])) as run:
        async with disconnecting(run, 1):
            second = asyncio.ensure_future(run.chat(seed=1))
            await until_shared(run, 2)
        first = await ended()
        assert not second.done()
        second.cancel()
        await until(lambda: len(TOLD) == 2)
    assert [(one.prompt_tokens, one.attempts) for one in (first, TOLD[1])] == [(None, 0), (1, 1)]


@pytest.mark.parametrize("chain", ["retry", "cache, retry", "cache, fallback, retry"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_disconnects_during_a_retry_has_used_all_attempts(
    start: Start, chain: str, stream: bool
) -> None:
    text = config().replace("two: {", "cache: {}, fallback: {default: [other]}, retry: {wait: 0, budget: 9}, two: {")
    text = text.replace("chat: [one]", f"chat: [one, {chain}]")
    async with start(text, Simulator(faults=[Fault("status", times=2), Fault("stall")])) as run:
        async with disconnecting(run, 1, stream=stream):
            await run.ollama.until(lambda: not run.ollama.faults)
        one = await ended()
    assert (one.error, one.attempts, one.model) == ("client_left", 3, "demo:latest")


async def test_a_client_that_disconnects_between_two_attempts_has_used_the_first(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Retry, "wait", lambda *_: 20.0)
    text = config().replace("two: {", "retry: {}, two: {").replace("chat: [one]", "chat: [one, retry]")
    async with start(text, Simulator(faults=[Fault("status", status=503)])) as run:
        asking = asyncio.ensure_future(run.chat())
        record = run.server.services.state["retry record"]
        await until(lambda: bool(record.statistics(1)["failures"]))
        asking.cancel()
        one = await ended()
    assert (one.error, one.attempts, one.prompt_tokens) == ("client_left", 1, None)


async def test_of_callers_sharing_a_stream_one_pays_for_everything(start: Start) -> None:
    async with start(CACHED, Simulator(faults=[Fault("stall", after=3, until=(go := asyncio.Event()))])) as run:
        asked = {"stream": True, "seed": 1, "max_tokens": 30}
        first = await run.chat(**asked)
        await first.content.readany()
        second = await run.chat(**asked)
        await second.content.readany()
        first.close()
        left = await ended()
        go.set()
        await second.read()
        await until(lambda: len(TOLD) == 2)
    assert (left.error, left.cache, left.attempts, left.eval_ns) == ("client_left", "shared", 0, 0)
    assert left.completion_tokens, "what the client got is announced all the same"
    paid = TOLD[1]
    assert (paid.error, paid.cache, paid.attempts, paid.estimated) == ("", "miss", 1, ()) and paid.eval_ns


async def test_a_client_that_leaves_the_queue_has_made_no_attempt(start: Start) -> None:
    text = f"{config()}upstreams: {{local: {{ollama: $OLLAMA, slots: 1}}}}\n"
    async with start(text, Simulator(faults=[Fault("stall")])) as run, disconnecting(run, 1):
        waiting = asyncio.ensure_future(run.chat(seed=2))
        pool = run.server.live.pipeline.value.upstreams["local"]
        await until(lambda: len(pool.queue.order) == 1)
        waiting.cancel()
        one = await ended()
    assert (one.error, one.attempts, one.prompt_tokens) == ("client_left", 0, None)


async def test_a_client_that_disconnects_after_the_first_of_two_choices_is_announced_as_such(start: Start) -> None:
    async with start(config(), Simulator(faults=[Fault("stall", after=2)])) as run:
        asked = {**ASK, "stream": True, "n": 2, "max_tokens": 20}
        response = await run.http.post(f"{run.url}/v1/chat/completions", json=asked)
        while b'"finish_reason":"' not in await response.content.readline():
            pass
        response.close()
        one = await ended()
    assert (one.error, one.finish) == ("client_left", "")


async def test_a_call_ended_by_its_callers_deadline_is_announced_with_the_error_that_the_caller_got(
    start: Start,
) -> None:
    async with start(config(), Simulator(delay=0.2)) as run:
        headers = {"x-stainless-read-timeout": "0.5"}
        response = await run.http.post(f"{run.url}/v1/chat/completions", json=ASK, headers=headers)
        one = await ended()
        assert (await response.json())["error"]["code"] == one.error == "upstream_timeout"


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_calls_without_counts_are_estimated(start: Start, stream: bool) -> None:
    async with start(config(full="true").replace("Metering", "Calling")) as run:
        await (await run.chat(stream=stream)).read()
        one = await ended()
    assert (one.completion_tokens, one.finish) == (100, "tool_calls") and "completion_tokens" in one.estimated


class Grounded(Metering):
    """Answers by itself, and stalls after its sources."""

    async def refusing(self, call: Call) -> Reply:
        return Reply.of(self.broken())

    async def broken(self) -> Events:
        yield Text("so")
        yield Sources(())
        await asyncio.sleep(30)


async def test_images_and_system_prompts_are_estimated_too(start: Start) -> None:
    """Without counts from the upstream, images and system prompts are part of the estimate."""
    shown = {"type": "image_url", "image_url": {"url": data_url()}}
    picture = base64.b64encode(PNG).decode()
    for path, asked, tokens in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [shown]}]}, 500),
        ("/api/generate", {"prompt": "what?", "images": [picture]}, 501),
        ("/api/generate", {"prompt": "what", "system": "be kind " * 50}, 101),
    ):
        async with start(config(), Simulator(faults=[Fault("eof", after=2)])) as run:
            body = {"model": "demo-vision", "stream": True, **asked}
            async with run.http.post(f"{run.url}{path}", json=body) as answer:
                await answer.read()
            one = await ended()
        assert (one.error, one.estimated) == ("upstream_cut", ("prompt_tokens", "completion_tokens"))
        assert one.prompt_tokens == tokens
        TOLD.clear()


@pytest.mark.parametrize("chain", ["one", "one, cache", "one, retry", "one, cache, retry"])
async def test_an_answer_that_does_not_match_its_schema_has_used_its_tokens(start: Start, chain: str) -> None:
    """Whether the call fails because of it, or a retry gives one that matches."""
    text = config().replace("two: {", "cache: {}, retry: {wait: 0, budget: 9}, two: {").replace("[one]", f"[{chain}]")
    answers = iter(["no such thing", '{"a": 1}'])
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"required": ["a"]}}}
    async with start(text, Simulator(say=lambda body: Said(next(answers)))) as run:
        response = await run.chat(response_format=schema)
        told = await response.json()
        one = await ended()
    assert (one.error, one.attempts) == (("", 2) if "retry" in chain else ("upstream_invalid_answer", 1))
    assert one.estimated == () and one.completion_tokens is not None and one.prompt_tokens is not None
    if "retry" in chain:
        used = told["usage"]
        assert one.prompt_tokens == 2 * used["prompt_tokens"] and one.completion_tokens > used["completion_tokens"]
    else:
        assert one.prompt_tokens > 1 and one.completion_tokens > 1 and one.eval_ns > 0


async def test_sources_do_not_complete_an_answer(start: Start) -> None:
    async with start(config(full="true").replace("Metering", "Grounded")) as run:
        response = await run.chat(stream=True)
        await response.content.readany()
        response.close()
        one = await ended()
    assert (one.error, one.finish) == ("client_left", "")


class Fateful(Metering):
    """Tells a figure that is none."""

    async def refusing(self, call: Call) -> Reply:
        return Reply.of(replay([Text("hi"), Usage(3, 2), Finish("stop")]), **{"queue-ms": "long", "model": "demo"})


@pytest.mark.parametrize("stream", [False, True])
async def test_a_calls_end_is_announced_although_a_figure_cannot_be_computed(
    start: Start, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    text = config(full="true").replace(":Metering", ":Fateful")
    async with start(text) as run:
        response = await run.chat(stream=stream)
        assert response.status == 200 and "hi" in await response.text()
        one = await ended()
    assert (one.asked, one.model, one.prompt_tokens, one.completion_tokens) == ("demo", "demo", 3, 2)
    assert (one.finish, one.error, one.meter) == ("stop", "", one.meter) and one.meter and one.total_ns
    assert caplog.text.count("not all figures of call") == 1


async def test_a_calls_end_is_announced_with_its_figures_although_pricing_fails(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("proxy.prices.PriceBook.cost", lambda *_: 1 / 0)
    async with start(config()) as run:
        assert (await run.chat()).status == 200
        one = await ended()
    assert one.cost is None and one.prompt_tokens and one.completion_tokens and one.eval_ns
    assert caplog.text.count("not all figures of call") == 1
