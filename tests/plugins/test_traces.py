"""Traces of calls, sent to a fake collector."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from plugins.traces import contents
from proxy.types import Chat, Message, ToolCall, ToolCalled
from proxy.upstreams.demo import Fault, Simulator
from tests.conftest import ASK, Running, Start

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


class Collector:
    """A collector that keeps the spans sent to it."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    async def take(self, request: web.Request) -> web.Response:
        sent = ExportTraceServiceRequest.FromString(await request.read())
        self.spans += [s for r in sent.resource_spans for scope in r.scope_spans for s in scope.spans]
        return web.Response()


@asynccontextmanager
async def traced(
    start: Start,
    collector: Collector,
    more: str = "",
    chain: str = "traces, retry",
    ollama: Simulator | None = None,
    beside: str = "",
) -> AsyncIterator[Running]:
    """A server; once it has stopped, all its spans have arrived."""
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    async with TestServer(app) as server:
        place = server.make_url("/v1/traces")
        text = f"plugins: {{retry: {{wait: 0.001}}, metrics: {{}}, traces: {{endpoint: '{place}'{more}}}}}\n"
        async with start(f"{text}chains: {{chat: [{chain}]}}\n{beside}", ollama) as run:
            yield run


def attributes_of(span: Any) -> dict[str, Any]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


async def call_in_trace(run: Running, parent: str) -> int:
    """The status of a call made with this `traceparent`."""
    headers = {"traceparent": parent}
    async with run.http.post(f"{run.url}/v1/chat/completions", json=ASK, headers=headers) as response:
        await response.read()
        return response.status


async def test_a_call_is_a_span_with_its_plugins_and_attempts_as_children(start: Start) -> None:
    collector = Collector()
    async with traced(start, collector) as run:
        assert (await run.chat()).status == 200
    spans = {span.name: span for span in collector.spans}
    call = spans["chat demo"]
    assert sorted(spans) == ["attempt 1", "chat demo", "retry"]
    assert spans["attempt 1"].parent_span_id == spans["retry"].parent_span_id == call.span_id
    assert attributes_of(call)["gen_ai.response.model"] and attributes_of(call)["gen_ai.usage.output_tokens"] > 0
    assert (
        attributes_of(call)["gen_ai.provider.name"]
        == attributes_of(spans["attempt 1"])["gen_ai.provider.name"]
        == "ollama"
    )
    assert attributes_of(spans["retry"]) == {"gemmapy.plugin": "retry"}
    assert call.start_time_unix_nano <= spans["retry"].start_time_unix_nano
    assert not any("messages" in name for name in attributes_of(call)), "contents are recorded only if configured"


@pytest.mark.parametrize("stream", [False, True])
async def test_contents_are_recorded_only_if_configured(start: Start, stream: bool) -> None:
    collector = Collector()
    async with traced(start, collector, ", contents: true") as run:
        response = await run.chat(messages=[{"role": "user", "content": "hi " * 3000}], stream=stream)
        await response.read()
    call = attributes_of(next(span for span in collector.spans if span.name == "chat demo"))
    (asked,) = orjson.loads(call["gen_ai.input.messages"])
    assert asked == {"role": "user", "parts": [{"type": "text", "content": ("hi " * 3000)[:4096]}]}
    (answered,) = orjson.loads(call["gen_ai.output.messages"])
    assert answered["finish_reason"] == "stop" and answered["parts"][0]["content"]


def test_tool_calls_per_message_in_a_span_are_limited() -> None:
    calls = tuple(ToolCall(f"call_{number}", "look", "{}") for number in range(200))
    (turn,) = orjson.loads(contents.asked(Chat((Message("assistant", "", tool_calls=calls),))))
    answer = contents.Answer()
    for one in calls:
        answer.add(ToolCalled(one.id, one.name, one.arguments))
    (said,) = orjson.loads(answer.as_json())
    assert [one["id"] for one in turn["parts"]] == [one["id"] for one in said["parts"]] == [c.id for c in calls[:128]]


async def test_a_trace_that_is_not_sampled_has_no_spans(start: Start) -> None:
    collector = Collector()
    async with traced(start, collector, ", contents: true") as run:
        assert await call_in_trace(run, f"00-{TRACE}-{SPAN}-00") == 200
    assert collector.spans == []


async def test_a_call_continues_its_clients_trace(start: Start) -> None:
    collector = Collector()
    async with traced(start, collector) as run:
        assert await call_in_trace(run, f"00-{TRACE}-{SPAN}-01") == 200
    call = next(span for span in collector.spans if span.name == "chat demo")
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, SPAN)


async def test_the_provider_is_that_of_the_upstreams_api(start: Start) -> None:
    """For a call that reached no upstream it is that of the first one."""
    collector, chats = Collector(), "models: {theirs: {alias: demo-vision}, demo-vision: {upstream: other}}\n"
    async with start("chains: {chat: []}") as behind:
        text = f"upstreams: {{local: {{ollama: $OLLAMA}}, other: {{openai: '{behind.url}/v1'}}}}\n{chats}"
        async with traced(start, collector, beside=text) as run:
            for model, status in (("demo", 200), ("theirs", 200), ("gone", 404)):
                assert (await run.chat(model=model)).status == status
    names = {
        span.name: attributes_of(span)["gen_ai.provider.name"]
        for span in collector.spans
        if span.name.startswith("chat")
    }
    assert names == {"chat demo": "ollama", "chat theirs": "openai", "chat gone": "ollama"}


async def test_a_failed_calls_span_has_the_error(start: Start) -> None:
    collector = Collector()
    async with traced(start, collector) as run:
        assert (await run.chat(model="nothing")).status == 404
    (call,) = [span for span in collector.spans if span.name == "chat nothing"]
    (inner,) = [span for span in collector.spans if span.name == "retry"]
    for one in (call, inner):
        assert one.status.code == 2 and attributes_of(one)["error.type"] == "model_not_found"


async def test_concurrent_calls_with_one_request_id_have_separate_spans(start: Start) -> None:
    async def ask(run: Running, model: str) -> None:
        headers = {"x-request-id": "mine"}
        async with run.http.post(
            f"{run.url}/v1/chat/completions", json={**ASK, "model": model}, headers=headers
        ) as one:
            await one.read()
            assert one.headers["x-request-id"] == "mine"

    ends = [asyncio.Event(), asyncio.Event()]
    collector, slow = Collector(), Simulator(faults=[Fault("stall", until=one) for one in ends])
    async with traced(start, collector, ollama=slow) as run:
        first = asyncio.ensure_future(ask(run, "demo"))
        await slow.until(lambda: slow.running == 1)
        second = asyncio.ensure_future(ask(run, "demo-thinking"))
        await slow.until(lambda: slow.running == 2)
        for end, one in zip(ends, (first, second), strict=True):
            end.set()
            await one
    spans = {span.name: span for span in collector.spans if span.name.startswith("chat")}
    models = {name: attributes_of(span)["gen_ai.response.model"] for name, span in spans.items()}
    assert models == {"chat demo": "demo:latest", "chat demo-thinking": "demo-thinking:latest"}


async def test_every_attempt_of_an_outer_plugin_has_a_span_that_ends(start: Start) -> None:
    collector, failing = Collector(), Simulator(faults=[Fault("status", status=503)])
    async with traced(start, collector, chain="metrics, retry, traces", ollama=failing) as run:
        assert (await run.chat()).status == 200
    assert [span.name for span in collector.spans].count("chat demo") == 2
