"""Streams, whole answers and disconnecting clients: what happens while an answer is being sent."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from proxy.edge.exchange import Exchange
from proxy.upstreams.demo import Fault, Said, Simulator
from tests.conftest import Start
from tests.whole.asking import ESCAPED, FLOOD, asked, error_of, said, slow_client, streamed, user, whole

LONG = Said("many words " * 100)
ENDLESS = Said(pieces=tuple(f"word {index} " for index in range(2_000)))
BUSY = "chains: {chat: [], embeddings: []}\nstreams: {heartbeat: 0.02}"


def slow_words(delay: float = 0.01, **more: Any) -> Simulator:
    """An Ollama that answers with many words, slowly."""
    return Simulator(delay=delay, **{"say": lambda body: LONG, **more})


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def read_first(response: aiohttp.ClientResponse, times: int = 1) -> None:
    """Read the first pieces of a stream."""
    for _ in range(times):
        assert await response.content.readany()


async def read_until(response: aiohttp.ClientResponse, comment: str, times: int = 1) -> None:
    """Read until this comment has come so many times."""
    async with asyncio.timeout(40):
        while times:
            times -= await response.content.readuntil(b"\n\n") == f"{comment}\n\n".encode()
            assert not response.content.at_eof()


@pytest.fixture
def without_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# --- what a stream looks like ----------------------------------------------------------------------


async def test_a_stream_has_sse_headers_and_ends_with_done(start: Start) -> None:
    async with start() as run:
        response = await run.chat(stream=True)
        stream = await streamed(response)
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert response.headers["x-request-id"] and "Content-Length" not in response.headers
    assert stream.done and stream.data.count("[DONE]") == 1 and not stream.errors


async def test_the_chunks_of_a_stream_are_like_openais(start: Start) -> None:
    async with start() as run:
        stream = await streamed(await run.chat(stream=True))
        document = await whole(await run.chat())
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in stream.chunks}) == 1
    assert {chunk["object"] for chunk in stream.chunks} == {"chat.completion.chunk"}
    assert stream.deltas()[0] == {"role": "assistant", "content": "", "refusal": None}
    assert all("role" not in delta for delta in stream.deltas()[1:])
    assert stream.deltas()[-1] == {} and stream.finishes() == ["stop"]
    assert all("usage" not in chunk for chunk in stream.chunks)
    assert stream.text() == said(document)["content"]


async def test_usage_comes_once_if_requested(start: Start) -> None:
    async with start() as run:
        stream = await streamed(await run.chat(stream=True, stream_options={"include_usage": True}))
        usage = (await whole(await run.chat()))["usage"]
    assert all(chunk["usage"] is None for chunk in stream.chunks[:-1])
    last = stream.chunks[-1]
    assert last["choices"] == [] and stream.done
    assert last["usage"]["completion_tokens"] == usage["completion_tokens"] > 0
    assert last["usage"]["prompt_tokens"] == usage["prompt_tokens"] > 0
    assert last["usage"]["total_tokens"] == usage["total_tokens"]


@pytest.mark.parametrize("split", [0, 1, 7])
async def test_no_character_is_split_however_the_bytes_arrive(start: Start, split: int) -> None:
    words = '🦙 日本語のテキスト — Grüße 👩\u200d👩\u200d👧 \u2028 \x00 \\n " end'
    ollama = Simulator(split=split, say=lambda body: Said(pieces=tuple(words), thinking="思考 🤔"))
    async with start(ollama=ollama) as run:
        response = await run.chat(model="demo-thinking", stream=True)
        raw = await response.read()
        document = await whole(await run.chat(model="demo-thinking"))
    pieces = [json.loads(line[6:]) for line in raw.split(b"\n\n") if line.startswith(b"data: {")]
    deltas = [piece["choices"][0]["delta"] for piece in pieces]
    assert "".join(delta.get("content") or "" for delta in deltas) == words
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "思考 🤔"
    assert said(document)["content"] == words and said(document)["reasoning_content"] == "思考 🤔"


async def test_a_stream_is_not_buffered(start: Start) -> None:
    async with start(ollama=Simulator(faults=[Fault("stall", after=2)])) as run:
        async with await run.chat(stream=True) as response:
            seen = b""
            while b"This is" not in seen.replace(b'"}', b""):
                async with asyncio.timeout(40):
                    seen += await response.content.readany()
                if seen.count(b"content") >= 3:
                    break
            assert run.ollama.running == 1
        await run.ollama.until_abandoned()


PAUSING = "plugins: {pausing: {use: 'tests.whole.rigged:Pausing'}}\nchains: {chat: [pausing]}"


@pytest.mark.parametrize("model", ["demo", "demo-rendered", "demo-thinking"])
@pytest.mark.parametrize("n", [1, 2])
async def test_a_stream_survives_a_plugin_that_pauses_between_events(start: Start, model: str, n: int) -> None:
    async with start(PAUSING) as run:
        stream = await streamed(await run.chat(model=model, n=n, stream=True, stream_options={"include_usage": True}))
    assert stream.done and stream.finishes() == ["stop"] * n and stream.chunks[-1]["usage"]


# --- several choices -------------------------------------------------------------------------------


async def test_several_choices_are_streamed_concurrently(start: Start) -> None:
    ollama = Simulator(say=lambda body: Said(f"seed {body['options']['seed']} said"))
    async with start(ollama=ollama) as run:
        stream = await streamed(await run.chat(stream=True, n=3, seed=5, stream_options={"include_usage": True}))
        document = await whole(await run.chat(n=3, seed=5))
    assert [stream.text(index) for index in range(3)] == ["seed 5 said", "seed 6 said", "seed 7 said"]
    assert stream.finishes() == ["stop"] * 3 and stream.done
    assert [one["message"]["content"] for one in document["choices"]] == [stream.text(index) for index in range(3)]
    assert [one["index"] for one in document["choices"]] == [0, 1, 2]
    usage = stream.chunks[-1]["usage"]
    assert usage["prompt_tokens"] == document["usage"]["prompt_tokens"]
    assert usage["completion_tokens"] == document["usage"]["completion_tokens"] == 3 * 3


async def test_each_choice_opens_with_its_role(start: Start) -> None:
    async with start() as run:
        stream = await streamed(await run.chat(stream=True, n=2))
    assert [stream.deltas(index)[0].get("role") for index in range(2)] == ["assistant", "assistant"]


async def test_a_choice_that_fails_ends_a_stream_of_several(start: Start) -> None:
    async with start(ollama=slow_words(faults=[Fault("error_line", after=3)])) as run:
        stream = await streamed(await run.chat(stream=True, n=3))
        await run.ollama.until_abandoned(2)
        assert run.ollama.finished == 0
    assert stream.broken["code"] == "upstream_server"


async def test_a_choice_that_fails_ends_a_whole_answer_of_several(start: Start) -> None:
    async with start(ollama=slow_words(faults=[Fault("error_line", after=3)])) as run:
        error = await error_of(await run.chat(n=3), 502)
        await run.ollama.until_abandoned(2)
        assert run.ollama.finished == 0
    assert error["code"] == "upstream_server"


async def test_a_choice_that_cannot_start_fails_the_call(start: Start) -> None:
    async with start(ollama=slow_words(faults=[Fault("status", status=500)])) as run:
        await error_of(await run.chat(stream=True, n=3), 502)
        await run.ollama.until(lambda: run.ollama.running == 0)
        assert run.ollama.finished == 0


# --- clients that disconnect -----------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_disconnects_before_the_first_token_stops_ollama(
    start: Start, stream: bool, n: int
) -> None:
    async with start(ollama=Simulator(faults=[Fault("stall", times=n)])) as run:
        asking = asyncio.ensure_future(run.chat(stream=stream, n=n))
        await run.ollama.until(lambda: run.ollama.running == n)
        await cancelled(asking)
        await run.ollama.until_abandoned(n)


async def test_a_client_that_disconnects_between_heartbeats_stops_ollama(start: Start) -> None:
    async with start(BUSY, Simulator(faults=[Fault("stall")])) as run:
        async with await run.chat(stream=True) as response:
            await run.ollama.until(lambda: run.ollama.running == 1)
            assert (await response.content.readany()).startswith(b": ")
        await run.ollama.until_abandoned()


@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_disconnects_during_a_stream_stops_ollama(start: Start, n: int) -> None:
    async with start(ollama=slow_words(say=lambda body: ENDLESS)) as run:
        async with await run.chat(stream=True, n=n) as response:
            await read_first(response, 3)
        await run.ollama.until_abandoned(n)


async def test_a_client_that_disconnects_during_a_stalled_stream_stops_ollama(start: Start) -> None:
    async with start(ollama=Simulator(faults=[Fault("stall", after=2)])) as run:
        async with await run.chat(stream=True) as response:
            await read_first(response)
        await run.ollama.until_abandoned()


@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_disconnects_during_a_whole_answer_stops_ollama(start: Start, n: int) -> None:
    async with start(ollama=slow_words()) as run:
        asking = asyncio.ensure_future(run.chat(n=n))
        await run.ollama.until(lambda: run.ollama.running == n)
        await cancelled(asking)
        await run.ollama.until_abandoned(n)


async def test_a_client_that_disconnects_during_embeddings_stops_ollama(start: Start) -> None:
    async with start(ollama=Simulator(faults=[Fault("stall")])) as run:
        asking = asyncio.ensure_future(run.embed())
        await run.ollama.until(lambda: run.ollama.running == 1)
        await cancelled(asking)
        await run.ollama.until_abandoned()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["demo", "demo-embed"])
async def test_a_client_that_disconnects_during_a_cold_load_does_not_abort_it(
    start: Start, stream: bool, model: str
) -> None:
    loaded = asyncio.Event()
    async with start(ollama=Simulator(faults=[Fault("slow_load", until=loaded)])) as run:

        def ask() -> asyncio.Task[aiohttp.ClientResponse]:
            asking = run.embed() if model == "demo-embed" else run.chat(stream=stream)
            return asyncio.ensure_future(asking)

        leaving, staying = ask(), ask()
        await run.ollama.until(lambda: run.ollama.calls["/api/chat"] + run.ollama.calls["/api/embed"] > 0)
        await cancelled(leaving)
        loaded.set()
        async with asyncio.timeout(40):
            response = await staying
            assert response.status == 200 and await response.read()
        assert (run.ollama.loads, run.ollama.load_aborts, run.ollama.reloads) == (1, 0, 0)


async def test_a_load_continues_after_all_clients_have_disconnected(start: Start) -> None:
    loaded = asyncio.Event()
    async with start(ollama=Simulator(faults=[Fault("slow_load", until=loaded)])) as run:
        leaving = asyncio.ensure_future(run.chat(stream=True))
        await run.ollama.until(lambda: run.ollama.calls["/api/chat"] > 0)
        await cancelled(leaving)
        loaded.set()
        await streamed(await run.chat(stream=True))
        assert (run.ollama.loads, run.ollama.load_aborts) == (1, 0) and len(asked(run.ollama)) == 1


async def test_many_concurrent_calls_load_a_cold_model_once(start: Start) -> None:
    async with start(ollama=Simulator(load_time=0.1)) as run:
        streams = await asyncio.gather(*(run.chat(stream=True) for _ in range(20)))
        assert all([(await streamed(one)).done for one in streams])
        assert (run.ollama.loads, run.ollama.reloads) == (1, 0)


# --- heartbeats ------------------------------------------------------------------------------------


async def test_a_waiting_stream_says_what_it_waits_for(start: Start) -> None:
    async with start(BUSY, Simulator(faults=[Fault("slow_load", until=(loaded := asyncio.Event()))])) as run:
        response = await run.chat(stream=True)
        await read_until(response, ": loading demo:latest", 2)
        loaded.set()
        stream = await streamed(response)
    assert stream.done and "simulated" in stream.text()


async def test_a_failure_after_heartbeats_comes_in_the_stream(start: Start) -> None:
    ollama = Simulator(faults=[Fault("load_failure", until=(over := asyncio.Event()))])
    async with start(BUSY, ollama) as run:
        response = await run.chat(stream=True)
        over.set()
        stream = await streamed(response)
    assert stream.comments and not stream.chunks
    assert stream.broken["code"] == "upstream_load" and stream.broken["type"] == "server_error"


async def test_heartbeats_bridge_a_pause_in_a_stream(start: Start) -> None:
    async with start(BUSY, Simulator(faults=[Fault("stall", after=2, until=(over := asyncio.Event()))])) as run:
        response = await run.chat(stream=True)
        await read_until(response, ": waiting", 3)
        over.set()
        assert (await streamed(response)).done


async def test_heartbeats_stop_reporting_a_load_once_it_is_over(start: Start) -> None:
    loaded, over = asyncio.Event(), asyncio.Event()
    ollama = Simulator(faults=[Fault("slow_load", until=loaded), Fault("stall", until=over)])
    async with start(BUSY, ollama) as run:
        response = await run.chat(stream=True)
        await read_until(response, ": loading demo:latest")
        loaded.set()
        await read_until(response, ": waiting")
        over.set()
        assert "loading" not in "".join((await streamed(response)).comments)


async def test_heartbeats_can_be_off(start: Start) -> None:
    yaml = "chains: {chat: []}\nstreams: {heartbeat: 0}"
    async with start(yaml, Simulator(load_time=0.1)) as run:
        assert not (await streamed(await run.chat(stream=True))).comments


async def test_a_failed_load_has_an_error_status_if_nothing_was_sent_yet(start: Start) -> None:
    async with start(ollama=Simulator(faults=[Fault("load_failure", times=2)])) as run:
        for stream in (False, True):
            error = await error_of(await run.chat(stream=stream), 502)
            assert error["code"] == "upstream_load"
        assert (await streamed(await run.chat(stream=True))).done


# --- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("error_line", "upstream_server"),
        ("eof", "upstream_cut"),
        ("reset", "upstream_cut"),
        ("garbage", "upstream_server"),
    ],
)
@pytest.mark.parametrize("n", [1, 2])
async def test_a_failure_in_the_middle_comes_in_the_stream(start: Start, kind: Any, code: str, n: int) -> None:
    async with start(ollama=Simulator(faults=[Fault(kind, after=3, times=n)], delay=0.02)) as run:
        stream = await streamed(await run.chat(stream=True, n=n))
    assert stream.text() and not stream.finishes()
    assert stream.broken["code"] == code and stream.broken["type"] == "server_error"


@pytest.mark.parametrize("kind", ["error_line", "eof", "garbage", "reset"])
async def test_a_failure_in_the_middle_of_a_whole_answer_has_an_error_status(start: Start, kind: Any) -> None:
    async with start(ollama=Simulator(faults=[Fault(kind, after=3)])) as run:
        error = await error_of(await run.chat(), 502)
    assert error["type"] == "server_error" and error["code"].startswith("upstream_")


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Fault("status", status=500), 502, "upstream_server"),
        (Fault("status", status=503), 503, "upstream_overloaded"),
        (Fault("status", status=499), 503, "upstream_overloaded"),
        (Fault("status", status=500, message="cudaMalloc failed: out of memory"), 502, "upstream_memory"),
        (Fault("error_line"), 502, "upstream_server"),
        (Fault("nested"), 400, "context_length_exceeded"),
        (Fault("eof"), 502, "upstream_cut"),
        (Fault("garbage"), 502, "upstream_server"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_event_has_an_error_status(
    start: Start, fault: Fault, status: int, code: str, stream: bool
) -> None:
    async with start(ollama=Simulator(faults=[fault])) as run:
        response = await run.chat(stream=stream)
        error = await error_of(response, status)
    assert error["code"] == code and "{" not in error["message"]
    assert ("Retry-After" in response.headers) == (status == 503)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reset_before_the_first_event_is_a_bad_gateway(start: Start, stream: bool) -> None:
    async with start(ollama=Simulator(faults=[Fault("reset")])) as run:
        error = await error_of(await run.chat(stream=stream), 502)
    assert error["code"] == "upstream_cut", "it was reached and then broke off"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_line_that_is_too_long_is_refused(start: Start, stream: bool) -> None:
    yaml = "chains: {chat: []}\nupstreams: {local: {ollama: $OLLAMA, max_answer_bytes: 100000}}"
    ollama = Simulator(faults=[Fault("long_line", after=2, size=3_000_000)], delay=0.01)
    async with start(yaml, ollama) as run:
        response = await run.chat(stream=stream)
        error = (await streamed(response)).broken if stream else await error_of(response, 502)
        await run.ollama.until(lambda: run.ollama.running == 0)
    assert error["code"] == "upstream_server" and "100000" in error["message"]


async def test_a_long_line_within_the_limit_is_passed_on(start: Start) -> None:
    async with start(ollama=Simulator(faults=[Fault("long_line", after=2, size=300_000)])) as run:
        stream = await streamed(await run.chat(stream=True))
    assert stream.done and "x" * 300_000 in stream.text()


async def test_a_connection_is_used_again_after_a_failed_call(start: Start) -> None:
    async with start(ollama=Simulator(faults=[Fault("status"), Fault("eof"), Fault("garbage", after=2)])) as run:
        for _ in range(3):
            await (await run.chat(stream=True)).read()
        assert (await streamed(await run.chat(stream=True))).done


# --- slow readers, and many of them ----------------------------------------------------------------


SLOW = "chains: {chat: []}\nstreams: {buffer_bytes: 10000, slow_reader: 0.15, heartbeat: 0}"


async def test_the_stream_of_a_client_that_reads_nothing_is_ended(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gemmapy.requests")
    async with start(SLOW, Simulator(say=lambda body: FLOOD)) as run, slow_client(run):
        await run.ollama.until(lambda: run.ollama.running == 1)
        await run.ollama.until_abandoned()
        assert run.ollama.finished == 0, "back-pressure must keep the answer from being read to its end from Ollama"
        async with asyncio.timeout(40):
            await run.server.live.pipeline.idle.wait()
    told = [record.__dict__["told"] for record in caplog.records]
    assert [one["error"] for one in told] == ["reader_too_slow"]


async def test_a_client_that_resumes_reading_too_late_gets_the_reason(start: Start) -> None:
    yaml = SLOW.replace("slow_reader: 0.15", "slow_reader: 0.6")
    async with start(yaml, Simulator(say=lambda body: FLOOD)) as run, slow_client(run) as reader:
        await run.ollama.until_abandoned()
        got = bytearray()
        async with asyncio.timeout(40):
            while b"reader_too_slow" not in got[-1000:]:
                part = await reader.read(1_000_000)
                assert part, "the stream ended without an error"
                got += part
    assert b"[DONE]" not in got and got.count(ESCAPED) < 500 * 10_000


async def test_the_memory_used_for_a_slow_reader_is_bounded(start: Start) -> None:
    """It is the buffer, one event and the sockets' buffers, however long the answer is."""
    async with start(SLOW.replace("0.15", "30"), Simulator(say=lambda body: FLOOD)) as run, slow_client(run):
        await run.ollama.until(lambda: run.ollama.running == 1)
        tracemalloc.start()
        await asyncio.sleep(0.3)  # until everything has come to rest, for which there is no event
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert run.ollama.finished == 0 and most < 5_000_000


async def test_a_reader_that_is_slow_for_a_while_gets_everything(start: Start) -> None:
    yaml = SLOW.replace("0.15", "5")
    async with start(yaml, Simulator(say=lambda body: FLOOD)) as run, slow_client(run) as reader:
        await run.ollama.until(lambda: run.ollama.running == 1)
        got = bytearray()
        async with asyncio.timeout(40):
            while b"[DONE]" not in got[-40:]:
                got += await reader.read(1_000_000)
        await run.ollama.until(lambda: run.ollama.finished == 1)
    assert got.count(ESCAPED) == 500 * 10_000


async def test_nothing_follows_done_even_with_a_slow_reader(start: Start) -> None:
    yaml = "chains: {chat: []}\nstreams: {buffer_bytes: 100000000, heartbeat: 0.02}"
    async with start(yaml, Simulator(say=lambda body: FLOOD)) as run, slow_client(run) as reader:
        await run.ollama.until(lambda: run.ollama.finished == 1)
        got = bytearray()
        await asyncio.sleep(0.1)  # until all of it waits for the reader, for which there is no event
        async with asyncio.timeout(40):
            while not got.endswith(b"\r\n0\r\n\r\n"):
                rest = min(3_000_000, 30_000_000 - len(got))
                got += await (reader.readexactly(rest) if rest > 0 else reader.read(100_000))
                await asyncio.sleep(0.03 if rest > 0 else 0)  # heartbeats are due while the writer waits for the reader
    assert got.removesuffix(b"\r\n0\r\n\r\n").endswith(b"data: [DONE]\n\n"), bytes(got[-100:])


async def test_several_hundred_streams_at_once_all_complete(start: Start) -> None:
    ollama = Simulator(parallel=1000, delay=0.002, say=lambda body: Said(body["messages"][0]["content"]))
    async with start(ollama=ollama) as run, aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:

        async def one(number: int) -> bool:
            words = f"client {number} has words of its own"
            body = {"model": "demo", "messages": user(words), "stream": True}
            async with http.post(f"{run.url}/v1/chat/completions", json=body) as response:
                stream = await streamed(response)
            return stream.done and stream.text() == words

        assert all(await asyncio.gather(*(one(number) for number in range(250))))
        assert (ollama.loads, ollama.reloads, ollama.abandoned, ollama.finished) == (1, 0, 0, 250)


async def test_disconnecting_clients_do_not_affect_other_streams(start: Start) -> None:
    async with start(ollama=slow_words(0.002, parallel=100)) as run:
        streams = await asyncio.gather(*(run.chat(stream=True) for _ in range(20)))
        for left in streams[::2]:
            left.close()
        kept = await asyncio.gather(*(streamed(one) for one in streams[1::2]))
        assert all(one.done for one in kept)
        await run.ollama.until_abandoned(10)
        assert (run.ollama.abandoned, run.ollama.finished) == (10, 10)


ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello!"}]},
    "/v1/completions": {"prompt": "Hello!"},
    "/v1/responses": {"input": "Hello!"},
    "/api/chat": {"messages": [{"role": "user", "content": "Hello!"}]},
    "/api/generate": {"prompt": "Hello!"},
}


async def test_an_answer_leaves_no_reference_cycles(start: Start, without_garbage_collection: None) -> None:
    """Objects in a cycle stay in memory until the garbage collector's next run, which is rare."""
    async with start() as run:
        for path, body in ENDPOINTS.items():
            for stream in (False, True):
                for _ in range(5):
                    asked = {"model": "demo", "stream": stream, **body}
                    async with run.http.post(f"{run.url}{path}", json=asked) as response:
                        assert response.status == 200 and await response.read()
                left = [one for one in gc.get_objects() if isinstance(one, Exchange)]
                assert len(left) <= 1, (path, stream)  # the connection still refers to its last request
                del left
