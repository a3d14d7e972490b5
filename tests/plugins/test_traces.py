"""Traces of calls, at a fake collector."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.conftest import Running, Start

CHAINS = "chains: {chat: [traces, retry], completions: [], embeddings: [], internal: []}"
TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


class Collector:
    """Spans that were sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    async def take(self, request: web.Request) -> web.Response:
        sent = ExportTraceServiceRequest.FromString(await request.read())
        self.spans += [s for r in sent.resource_spans for scope in r.scope_spans for s in scope.spans]
        return web.Response()


@asynccontextmanager
async def traced(start: Start, collector: Collector) -> AsyncIterator[Running]:
    """A server whose spans have all arrived once it has stopped."""
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    async with TestServer(app) as server:
        text = f"plugins: {{retry: {{}}, traces: {{endpoint: '{server.make_url('/v1/traces')}'}}}}\n{CHAINS}"
        async with start(text) as run:
            yield run


def told(span: Any) -> dict[str, Any]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


async def test_a_call_is_a_span_with_its_attempts_as_children(start: Start) -> None:
    collector = Collector()
    async with traced(start, collector) as run:
        assert (await run.chat()).status == 200
    call, attempt = sorted(collector.spans, key=lambda span: span.name, reverse=True)
    assert (call.name, attempt.name) == ("chat demo", "attempt 1")
    assert attempt.parent_span_id == call.span_id
    assert told(call)["gen_ai.response.model"] and told(call)["gen_ai.usage.output_tokens"] > 0


async def test_a_call_goes_on_with_the_trace_of_its_client(start: Start) -> None:
    collector = Collector()
    async with traced(start, collector) as run:
        headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
        body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
        await run.http.post(f"{run.url}/v1/chat/completions", json=body, headers=headers)
    call = next(span for span in collector.spans if span.name == "chat demo")
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, SPAN)


async def test_a_call_that_failed_is_a_span_with_its_error(start: Start) -> None:
    collector = Collector()
    async with traced(start, collector) as run:
        assert (await run.chat(model="nothing")).status == 404
    (call,) = [span for span in collector.spans if span.name == "chat nothing"]
    assert call.status.code == 2 and told(call)["error.type"] == "model_not_found"
