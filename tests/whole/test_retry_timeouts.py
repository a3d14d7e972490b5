"""The plugins `retry` and `timeouts` in a running server, in front of an Ollama that fails or stalls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from plugins.retry import Retry
from proxy.upstreams.demo import Fault, Said, Simulator
from tests.conftest import Late, Running, Start
from tests.whole.asking import FLOOD, asked, dead_url, error_of, function, said, slow_client, streamed, whole

RETRY = "plugins: {retry: {attempts: 3, wait: 0}}\nchains: {chat: [retry], embeddings: [retry]}\n"
CITY = {"type": "json_schema", "json_schema": {"name": "c", "schema": {"type": "object", "required": ["name"]}}}


def timeouts(**seconds: float | None) -> str:
    limits = {"first_event": None, "between_events": None, "total": None, **seconds}
    shown = ", ".join(f"{name}: {'null' if value is None else value}" for name, value in limits.items())
    return f"plugins: {{timeouts: {{{shown}}}}}\nchains: {{chat: [timeouts], embeddings: [timeouts]}}\n"


async def until_started(run: Running, count: int) -> None:
    await run.ollama.until(lambda: run.ollama.started == count)


async def stalled(run: Running, late: Late, **body: Any) -> aiohttp.ClientResponse:
    """The answer to a chat call whose time limit passes while Ollama works on it."""
    asking = asyncio.ensure_future(run.chat(**body))
    await run.ollama.until(lambda: run.ollama.running == 1)
    await late(run)
    return await asking


# --- retry -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["status", "error_line", "eof", "garbage", "reset", "load_failure"])
async def test_a_call_is_retried_until_it_succeeds(start: Start, stream: bool, kind: Any) -> None:
    async with start(RETRY, Simulator(faults=[Fault(kind, times=2)])) as run:
        response = await run.chat(stream=stream)
        text = (await streamed(response)).text() if stream else said(await whole(response))["content"]
        again = await run.chat(stream=stream)
        assert again.status == 200
    assert response.headers["x-gemmapy-attempts"] == "3" and "simulated" in text
    assert "x-gemmapy-attempts" not in again.headers


async def test_embeddings_are_retried_too(start: Start) -> None:
    async with start(RETRY, Simulator(faults=[Fault("status"), Fault("eof")])) as run:
        response = await run.embed()
        assert (await whole(response))["data"]
    assert response.headers["x-gemmapy-attempts"] == "3" and len(asked(run.ollama, "/api/embed")) == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_keeps_failing_is_given_up(start: Start, stream: bool) -> None:
    async with start(RETRY, Simulator(faults=[Fault("status", times=99)])) as run:
        error = await error_of(await run.chat(stream=stream), 502)
    assert error["code"] == "upstream_server" and len(asked(run.ollama)) == 3


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "nobody"}, 404),
        ({"messages": [{"role": "user", "content": "x " * 10_000}]}, 400),
        ({"model": "demo-embed"}, 400),
        ({"temperature": 9}, 400),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_invalid_request_is_never_retried(
    start: Start, body: dict[str, Any], status: int, stream: bool
) -> None:
    async with start(RETRY) as run:
        await error_of(await run.chat(**body, stream=stream), status)
    assert len(asked(run.ollama)) <= 1


@pytest.mark.parametrize("kind", ["error_line", "eof", "garbage", "reset"])
@pytest.mark.parametrize("n", [1, 2])
async def test_a_stream_that_has_begun_is_never_retried(start: Start, kind: Any, n: int) -> None:
    async with start(RETRY, Simulator(faults=[Fault(kind, after=3)], delay=0.02)) as run:
        stream = await streamed(await run.chat(stream=True, n=n))
    assert stream.broken and stream.text() and len(asked(run.ollama)) == n


@pytest.mark.parametrize("kind", ["error_line", "eof", "reset"])
async def test_a_whole_answer_that_broke_off_is_retried(start: Start, kind: Any) -> None:
    async with start(RETRY, Simulator(faults=[Fault(kind, after=3)])) as run:
        response = await run.chat()
        await whole(response)
    assert response.headers["x-gemmapy-attempts"] == "2" and len(asked(run.ollama)) == 2


async def test_an_answer_that_does_not_match_the_schema_is_retried(start: Start) -> None:
    answers = iter(["no JSON", "{}", '{"name": "Ulm"}'])
    async with start(RETRY, Simulator(say=lambda body: Said(next(answers)))) as run:
        response = await run.chat(response_format=CITY)
        document = await whole(response)
    assert said(document)["content"] == '{"name": "Ulm"}' and response.headers["x-gemmapy-attempts"] == "3"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_missing_forced_tool_call_is_retried(start: Start, stream: bool) -> None:
    answers = iter(["no JSON", '{"name": "get_weather", "arguments": {"city": "Ulm"}}'])
    async with start(RETRY, Simulator(say=lambda body: Said(next(answers)))) as run:
        response = await run.chat(tools=[function("get_weather")], tool_choice="required", stream=stream)
        assert response.status == 200 and b"get_weather" in await response.read()
    assert response.headers.get("x-gemmapy-attempts") == "2"


async def test_a_failed_choice_makes_the_retry_request_all_choices(start: Start) -> None:
    async with start(RETRY, Simulator(faults=[Fault("status")])) as run:
        response = await run.chat(n=3)
        assert len((await whole(response))["choices"]) == 3
    assert response.headers["x-gemmapy-attempts"] == "2"


@pytest.mark.parametrize("status", [500, 503])
async def test_only_the_configured_errors_are_retried(start: Start, status: int) -> None:
    yaml = "plugins: {retry: {wait: 0, on: [connect]}}\nchains: {chat: [retry]}"
    async with start(yaml, Simulator(faults=[Fault("status", status=status)])) as run:
        await error_of(await run.chat(), 502 if status == 500 else 503)
    assert len(asked(run.ollama)) == 1


async def test_out_of_memory_is_not_retried(start: Start) -> None:
    fault = Fault("status", message="model requires more system memory (9.0 GiB) than is available (2.0 GiB)")
    async with start(RETRY, Simulator(faults=[fault])) as run:
        error = await error_of(await run.chat(), 502)
    assert error["code"] == "upstream_memory" and len(asked(run.ollama)) == 1


async def test_there_is_no_retry_if_the_wait_would_exceed_its_maximum(start: Start) -> None:
    yaml = "plugins: {retry: {wait: 0, max_wait: 0.5}}\nchains: {chat: [retry]}"
    async with start(yaml, Simulator(faults=[Fault("status", status=503)])) as run:
        response = await run.chat()
        await error_of(response, 503)
    assert response.headers["Retry-After"] == "1" and len(asked(run.ollama)) == 1


async def test_there_is_no_retry_after_the_client_disconnects(start: Start) -> None:
    yaml = "plugins: {retry: {wait: 30, max_wait: 60, attempts: 5}}\nchains: {chat: [retry]}"
    async with start(yaml, Simulator(faults=[Fault("status", status=503, times=9)])) as run:
        asking = asyncio.ensure_future(run.chat())
        await run.ollama.until(lambda: len(asked(run.ollama)) == 1)
        asking.cancel()
        async with asyncio.timeout(10):
            await run.server.live.pipeline.idle.wait()
        assert len(asked(run.ollama)) == 1


async def test_heartbeats_of_a_stream_report_a_retry(start: Start) -> None:
    yaml = RETRY + "streams: {heartbeat: 0.02}\n"
    faults = [Fault("status"), Fault("stall", until=(told := asyncio.Event()))]
    async with start(yaml, Simulator(faults=faults)) as run:
        response = await run.chat(stream=True)
        while b"trying again" not in await response.content.readline():
            pass
        told.set()
        assert b"[DONE]" in await response.read()


# --- timeouts --------------------------------------------------------------------------------------


async def test_a_stream_that_does_not_begin_in_time_is_a_gateway_timeout(start: Start, late: Late) -> None:
    async with start(timeouts(first_event=600), Simulator(faults=[Fault("stall")])) as run:
        error = await error_of(await stalled(run, late, stream=True), 504)
        await run.ollama.until_abandoned()
    assert error["code"] == "upstream_timeout" and error["type"] == "server_error"


async def test_a_stream_that_times_out_after_heartbeats_gets_the_error_in_band(start: Start, late: Late) -> None:
    yaml = timeouts(first_event=600) + "streams: {heartbeat: 0.03}\n"
    async with start(yaml, Simulator(faults=[Fault("stall")])) as run:
        response = await run.chat(stream=True)
        await run.ollama.until(lambda: run.ollama.running == 1)
        while await response.content.readuntil(b"\n\n") != b": waiting\n\n":
            pass  # the model is being loaded
        await late(run)
        stream = await streamed(response)
        await run.ollama.until_abandoned()
    assert stream.broken["code"] == "upstream_timeout"


async def test_a_load_counts_towards_first_event_and_continues_after_the_timeout(start: Start, late: Late) -> None:
    loaded = asyncio.Event()
    async with start(timeouts(first_event=600), Simulator(faults=[Fault("slow_load", until=loaded)])) as run:
        asking = asyncio.ensure_future(run.chat(stream=True))
        await run.ollama.until(lambda: run.ollama.loads == 1)
        await late(run)
        await error_of(await asking, 504)
        loaded.set()
        await whole(await run.chat())
        assert (run.ollama.loads, run.ollama.load_aborts) == (1, 0)


@pytest.mark.parametrize("n", [1, 2])
async def test_a_stream_that_pauses_too_long_ends_with_an_error_in_band(start: Start, late: Late, n: int) -> None:
    async with start(timeouts(between_events=600), Simulator(faults=[Fault("stall", after=3, times=n)])) as run:
        response = await run.chat(stream=True, n=n)
        await run.ollama.until(lambda: run.ollama.running == n)
        await late(run)
        stream = await streamed(response)
        await run.ollama.until_abandoned(n)
    assert stream.text() and stream.broken["code"] == "upstream_timeout" and "600" in stream.broken["message"]


async def test_a_stream_that_takes_too_long_in_total_ends_with_an_error_in_band(start: Start, late: Late) -> None:
    async with start(timeouts(total=600), Simulator(faults=[Fault("stall", after=3)])) as run:
        response = await run.chat(stream=True)
        await late(run)
        stream = await streamed(response)
        await run.ollama.until_abandoned()
    assert stream.text() and stream.broken["code"] == "upstream_timeout"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_exceeds_the_total_before_its_first_event_is_a_gateway_timeout(
    start: Start, late: Late, stream: bool
) -> None:
    async with start(timeouts(total=600), Simulator(faults=[Fault("stall")])) as run:
        error = await error_of(await stalled(run, late, stream=stream), 504)
        await run.ollama.until_abandoned()
    assert error["code"] == "upstream_timeout" and "complete" in error["message"]


async def test_embeddings_that_take_too_long_are_a_gateway_timeout(start: Start, late: Late) -> None:
    async with start(timeouts(total=600), Simulator(faults=[Fault("stall")])) as run:
        asking = asyncio.ensure_future(run.embed())
        await run.ollama.until(lambda: run.ollama.running == 1)
        await late(run)
        assert (await error_of(await asking, 504))["code"] == "upstream_timeout"
        await run.ollama.until_abandoned()


async def test_first_event_does_not_limit_a_whole_answer(start: Start) -> None:
    ollama = Simulator(faults=[Fault("stall", seconds=0.2)])
    async with start(timeouts(first_event=0.05, between_events=0.05), ollama) as run:
        await whole(await run.chat())


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_within_the_limits_is_not_affected(start: Start, stream: bool) -> None:
    yaml = timeouts(first_event=60, between_events=60, total=90)
    async with start(yaml, Simulator(delay=0.005)) as run:
        response = await run.chat(stream=stream)
        assert (await streamed(response)).done if stream else await whole(response)
        assert run.ollama.abandoned == 0


async def test_a_slow_reader_does_not_count_as_an_upstream_timeout(start: Start, late: Late) -> None:
    yaml = timeouts(between_events=600) + "streams: {buffer_bytes: 10000, slow_reader: 9999, heartbeat: 0}\n"
    async with start(yaml, Simulator(say=lambda body: FLOOD)) as run, slow_client(run) as reader:
        await run.ollama.until(lambda: run.ollama.running == 1)
        await late.while_read(run)
        got = bytearray()
        async with asyncio.timeout(30):
            while not got.endswith(b"\r\n0\r\n\r\n"):
                got += await reader.read(1_000_000)
    assert b"data: [DONE]" in got[-50:] and b'"error"' not in got


# --- both, and a dead port -------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_dead_port_is_a_bad_gateway(start: Start, stream: bool) -> None:
    yaml = timeouts(total=60) + f"upstreams: {{gone: {{ollama: '{dead_url()}'}}}}\n"
    async with start(yaml) as run:
        error = await error_of(await run.chat(stream=stream), 502)
        embedded = await error_of(await run.embed(), 502)
    assert error["code"] == embedded["code"] == "upstream_connect" and error["type"] == "server_error"


async def test_a_dead_port_is_retried_up_to_the_configured_attempts(start: Start) -> None:
    yaml = RETRY.replace("attempts: 3", "attempts: 4") + f"upstreams: {{gone: {{ollama: '{dead_url()}'}}}}\n"
    async with start(yaml) as run:
        assert (await error_of(await run.chat(), 502))["code"] == "upstream_connect"
        stats = await whole(await run.http.get(f"{run.url}/api/retry/stats"))
    assert (stats["attempts"], stats["failures"]) == (4, 4)


BOTH = "plugins: {{retry: {{wait: 0, on: [timeout, server]}}, timeouts: {{total: 600}}}}\nchains: {{chat: [{}]}}"


@pytest.mark.parametrize("stream", [False, True])
async def test_timeouts_inside_retry_apply_to_each_attempt(start: Start, late: Late, stream: bool) -> None:
    async with start(BOTH.format("retry, timeouts"), Simulator(faults=[Fault("stall", times=2)])) as run:
        asking = asyncio.ensure_future(run.chat(stream=stream))
        for number in (1, 2):
            await until_started(run, number)
            await late(run)
            await run.ollama.until_abandoned(number)
        response = await asking
        assert response.status == 200 and await response.read()
    assert response.headers["x-gemmapy-attempts"] == "3"


async def test_timeouts_outside_retry_apply_to_all_attempts_together(start: Start, late: Late) -> None:
    async with start(BOTH.format("timeouts, retry"), Simulator(faults=[Fault("stall")])) as run:
        await error_of(await stalled(run, late), 504)
        assert len(asked(run.ollama)) == 1


async def test_there_is_no_retry_if_its_wait_would_end_after_the_deadline(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    yaml = "plugins: {retry: {wait: 0, max_wait: 900}, timeouts: {total: 600}}\nchains: {chat: [timeouts, retry]}"
    monkeypatch.setattr(Retry, "wait", lambda *_: 700.0)
    async with start(yaml, Simulator(faults=[Fault("status", status=503)])) as run, asyncio.timeout(30):
        error = await error_of(await run.chat(), 503)
    assert error["code"] == "upstream_overloaded" and len(asked(run.ollama)) == 1


# --- the caller's choice, the budget, and the statistics ---------------------------------------------


async def test_a_caller_can_turn_retries_off(start: Start) -> None:
    async with start(RETRY, Simulator(faults=[Fault("status", times=2)])) as run:
        response = await run.chat(use_retry=False)
        assert response.status == 502 and "x-should-retry" not in response.headers
        assert "x-gemmapy-params" not in response.headers and len(asked(run.ollama)) == 1
        assert (await run.chat(use_retry=True)).status == 200
        before = len(asked(run.ollama))
        assert (await error_of(await run.chat(use_retry="no"), 400))["param"] == "use_retry"
        assert len(asked(run.ollama)) == before, "an invalid value is refused before the call"


async def test_an_outage_is_not_multiplied_by_retries(start: Start) -> None:
    text = "plugins: {retry: {attempts: 5, wait: 0, budget: 0.1}}\nchains: {chat: [retry]}\n"
    async with start(text, Simulator(faults=[Fault("status", times=10_000)])) as run:
        answers = [await run.chat() for _ in range(100)]
        assert {answer.status for answer in answers} == {502}
        assert 100 < len(asked(run.ollama)) < 140, "a tenth more, plus the minimum that is always allowed"
        last = answers[-1]
        assert last.headers["x-gemmapy-retry"] == "out of budget" and last.headers["x-should-retry"] == "false"


async def test_attempts_and_their_outcomes_are_recorded(start: Start) -> None:
    async with start(RETRY, Simulator(faults=[Fault("status"), Fault("status", times=3, path="/api/embed")])) as run:
        await run.chat()
        await run.chat()
        await run.embed()
        told = await whole(await run.http.get(f"{run.url}/api/retry/stats?hours=1"))
    assert (told["attempts"], told["failures"], told["retries"]) == (6, 4, 3)
    assert (told["successes_after_retry"], told["failure_rate"]) == (1, round(4 / 6, 4))
    assert told["errors"] == {"upstream_server": 4}
    assert {one["model"]: one["attempts"] for one in told["by_model"]}["demo:latest"] == 3


@pytest.mark.parametrize("chain", ["retry", "cache, retry", "cache, fallback, retry"])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_attempt_cancelled_by_its_client_does_not_count_as_a_failure(
    start: Start, chain: str, stream: bool
) -> None:
    text = "plugins: {cache: {}, fallback: {default: [other], first_token: 30}, retry: {wait: 0}}\n"
    faults = [Fault("status"), Fault("stall")]
    async with start(f"{text}chains: {{chat: [{chain}]}}\n", Simulator(faults=faults)) as run:
        asking = asyncio.ensure_future(run.chat(stream=stream))
        await run.ollama.until(lambda: not run.ollama.faults and run.ollama.running == 1)
        asking.cancel()
        told = await stats_after_cancellation(run)
    assert (told["attempts"], told["failures"], told["failure_rate"]) == (2, 1, 1.0)
    assert (told["retries"], told["successes_after_retry"], told["errors"]) == (1, 0, {"upstream_server": 1})
    (one,) = [one for one in told["by_model"] if one["broken_off"]]
    assert one["model"] == "demo:latest"


async def until(so: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not so():  # noqa: ASYNC110  (no event)
            await asyncio.sleep(0.005)


async def stats_after_cancellation(run: Running) -> Any:
    """The statistics, once one attempt has been cancelled."""
    record = run.server.services.state["retry record"]
    await until(lambda: bool(record.statistics(1)["broken_off"]))
    told = await whole(await run.http.get(f"{run.url}/api/retry/stats"))
    assert told["broken_off"] == 1
    return told


async def test_a_client_that_leaves_the_queue_has_cancelled_no_attempt(start: Start) -> None:
    text = f"{RETRY}upstreams: {{local: {{ollama: $OLLAMA, slots: 1}}}}\n"
    async with start(text, Simulator(faults=[Fault("stall")])) as run:
        first = asyncio.ensure_future(run.chat())
        await run.ollama.until(lambda: run.ollama.running == 1)
        waiting = asyncio.ensure_future(run.chat())
        queue = run.server.live.pipeline.value.upstreams["local"].queue
        await until(lambda: len(queue.order) == 1)
        waiting.cancel()
        await until(lambda: not len(queue.order))
        first.cancel()
        assert (await stats_after_cancellation(run))["attempts"] == 1


@pytest.mark.parametrize("chain", ["timeouts, retry", "retry, timeouts", "timeouts, cache, retry"])
async def test_a_timeout_counts_as_a_failure_wherever_it_is_in_the_chain(start: Start, late: Late, chain: str) -> None:
    text = "plugins: {cache: {}, timeouts: {first_event: 600}, retry: {wait: 0}}\n"
    async with start(f"{text}chains: {{chat: [{chain}]}}\n", Simulator(faults=[Fault("stall")])) as run:
        assert (await stalled(run, late, stream=True)).status == 504
        await run.ollama.until(lambda: run.ollama.running == 0)
        told = await whole(await run.http.get(f"{run.url}/api/retry/stats"))
    assert (told["attempts"], told["broken_off"], told["errors"]) == (1, 0, {"upstream_timeout": 1})


@pytest.mark.parametrize("hours", ["0", "-1", "49", "many", "1e9", "nan"])
async def test_an_invalid_number_of_hours_is_refused(start: Start, hours: str) -> None:
    async with start(RETRY) as run:
        error = await error_of(await run.http.get(f"{run.url}/api/retry/stats", params={"hours": hours}), 400)
    assert error["param"] == "hours"
