"""What a call took is told once, however it ended."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.config import Strict
from proxy.errors import TooMany
from proxy.host import Host
from proxy.meter import metered
from proxy.news import CallEnded
from proxy.streams import replay
from proxy.types import Call, Events, Finish, Handler, Reply, Sources, Text, ToolCalled
from proxy.upstreams.demo import Fault, Simulator
from tests.conftest import ASK, Start

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
    """Answers by itself, with a call of a function, of which it does not tell how many tokens it took."""

    async def refusing(self, call: Call) -> Reply:
        return Reply.of(replay([ToolCalled("1", "look", "x" * 396), Finish("tool_calls")]))


@pytest.fixture(autouse=True)
def nothing_told() -> None:
    TOLD[:] = []


async def ended() -> CallEnded:
    async with asyncio.timeout(5):
        while not TOLD:  # noqa: ASYNC110  (it is told after the answer)
            await asyncio.sleep(0.001)
    (one,) = TOLD
    return one


def config(**settings: Any) -> str:
    two = ", ".join(f"{name}: {value}" for name, value in settings.items())
    return f"plugins: {{one: {{use: '{__name__}:Metering', {two}}}, two: {{use: '{__name__}:Second'}}}}\n" + (
        "chains: {chat: [one], embeddings: [one], completions: [one]}\n"
    )


class Second(Metering):
    """Measures nothing more where the other one does."""

    def listen(self) -> None:
        """It does not care."""


DOUBLE = config().replace("[one]", "[one, two]")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_told_once_with_the_counts_of_its_upstream(start: Start, stream: bool) -> None:
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


async def test_what_a_shared_answer_took_is_told_of_the_call_that_it_was_made_for(start: Start) -> None:
    text = (
        config()
        .replace("two: {", "cache: {}, retry: {wait: 0}, two: {")
        .replace("chat: [one]", "chat: [one, cache, retry]")
    )
    async with start(f"{text}upstreams: {{local: {{ollama: $OLLAMA, slots: 1}}}}\n", Simulator(delay=0.002)) as run:
        before = asyncio.ensure_future(run.chat(seed=1))
        await run.ollama.until(lambda: run.ollama.running == 1)
        run.ollama.faults.append(Fault("status"))
        answers = await asyncio.gather(*(run.chat() for _ in range(5)), before)
        assert {answer.status for answer in answers} == {200}
    shared = [one for one in TOLD if one.cache == "shared"]
    (made,) = [one for one in TOLD if one.attempts == 2]
    assert len(shared) == 4 and made.cache == "miss"
    assert [(one.attempts, one.queue_ns) for one in shared] == [(0, 0)] * 4


async def test_vectors_are_told(start: Start) -> None:
    async with start(config()) as run:
        assert (await run.embed()).status == 200
        one = await ended()
    assert (one.route, one.finish, one.error) == ("embeddings", "stop", "") and one.prompt_tokens


async def test_a_refused_call_took_nothing(start: Start) -> None:
    async with start(config(full="true")) as run:
        assert (await run.chat()).status == 429
        one = await ended()
    assert (one.error, one.finish, one.first_ns) == ("full", "", None)
    assert (one.prompt_tokens, one.completion_tokens, one.estimated) == (None, None, ())
    assert one.attempts == 0


async def test_a_stream_that_breaks_off_took_what_it_had_brought(start: Start) -> None:
    async with start(config(), Simulator(faults=[Fault("eof", after=3)])) as run:
        await (await run.chat(stream=True)).read()
        one = await ended()
    assert one.error == "upstream_cut" and one.finish == ""
    assert one.completion_tokens == 3 and set(one.estimated) == {"prompt_tokens", "completion_tokens"}
    assert one.prompt_tokens == 1


async def test_a_client_that_leaves_is_told_as_one(start: Start) -> None:
    async with start(config(), Simulator(delay=0.05)) as run:
        response = await run.http.post(
            f"{run.url}/v1/chat/completions", json={**ASK, "stream": True, "max_tokens": 500}
        )
        await response.content.readany()
        response.close()
        one = await ended()
    assert (one.error, one.finish) == ("client_left", "")


async def test_a_client_that_leaves_after_the_first_of_two_answers_is_told_as_one(start: Start) -> None:
    async with start(config(), Simulator(faults=[Fault("stall", after=2)])) as run:
        asked = {**ASK, "stream": True, "n": 2, "max_tokens": 20}
        response = await run.http.post(f"{run.url}/v1/chat/completions", json=asked)
        while b'"finish_reason":"' not in await response.content.readline():
            pass
        response.close()
        one = await ended()
    assert (one.error, one.finish) == ("client_left", "")


async def test_a_call_that_was_given_up_at_its_callers_limit_is_told_as_the_caller_was(start: Start) -> None:
    async with start(config(), Simulator(delay=0.2)) as run:
        headers = {"x-stainless-read-timeout": "0.5"}
        response = await run.http.post(f"{run.url}/v1/chat/completions", json=ASK, headers=headers)
        one = await ended()
        assert (await response.json())["error"]["code"] == one.error == "upstream_timeout"


@pytest.mark.parametrize("stream", [False, True])
async def test_calls_of_functions_are_estimated_where_nobody_counted(start: Start, stream: bool) -> None:
    async with start(config(full="true").replace("Metering", "Calling")) as run:
        await (await run.chat(stream=stream)).read()
        one = await ended()
    assert (one.completion_tokens, one.finish) == (100, "tool_calls") and "completion_tokens" in one.estimated


class Grounded(Metering):
    """Answers by itself, and breaks off when it has told its sources."""

    async def refusing(self, call: Call) -> Reply:
        return Reply.of(self.broken())

    async def broken(self) -> Events:
        yield Text("so")
        yield Sources(())
        await asyncio.sleep(30)


async def test_sources_do_not_complete_an_answer(start: Start) -> None:
    async with start(config(full="true").replace("Metering", "Grounded")) as run:
        response = await run.chat(stream=True)
        await response.content.readany()
        response.close()
        one = await ended()
    assert (one.error, one.finish) == ("client_left", "")
