"""Calls in progress as spans, by OpenTelemetry's conventions for generative AI."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Protocol

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from plugins.traces import contents
from proxy.announcements import Attempt, CallEnded, FellBack
from proxy.errors import ProxyError
from proxy.types import Call, Events, Handler, Reply

OPERATIONS: Final = {"chat": "chat", "completions": "text_completion", "embeddings": "embeddings"}
PROVIDER: Final = "gen_ai.provider.name"
BATCH: Final = 512
UNSAMPLED: Final = "-00"
"""The end of a `traceparent` that is not sampled."""
W3C: Final = TraceContextTextMapPropagator()


class Wanted(Protocol):
    """How spans are sent."""

    endpoint: str
    service: str
    sample: float
    queue: int
    timeout: float


def provider_of(wanted: Wanted, headers: dict[str, str]) -> TracerProvider:
    """A provider that sends spans in batches, from a thread of its own."""
    resource = Resource.create({"service.name": wanted.service})
    provider = TracerProvider(resource=resource, sampler=ParentBasedTraceIdRatio(wanted.sample), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=wanted.endpoint, headers=headers, timeout=wanted.timeout)
    batch = min(BATCH, wanted.queue)
    provider.add_span_processor(BatchSpanProcessor(exporter, wanted.queue, max_export_batch_size=batch))
    return provider


class Spans:
    """Spans of calls in progress, by their meters' ids: clients choose the calls' ids, and may use one twice."""

    def __init__(self, provider: TracerProvider, contents: bool, speaks: Callable[[str], str]) -> None:
        """speaks: returns the API that an upstream speaks; "" if that is not known yet."""
        self.provider = provider
        self.contents = contents
        self.speaks = speaks
        self.tracer = provider.get_tracer("gemmapy_proxy")
        self.running: dict[str, Span] = {}

    def begin(self, call: Call) -> tuple[Call, Span]:
        """The call with a new span, which is the parent of all spans inside."""
        kind = OPERATIONS.get(call.route, call.route)
        told = {"gen_ai.operation.name": kind, "gen_ai.request.model": call.model, "gemmapy.request.id": call.id}
        told[PROVIDER] = self.speaks("")
        span = self.tracer.start_span(f"{kind} {call.model}", W3C.extract(call.trail), SpanKind.SERVER, told)
        if self.contents and span.is_recording():
            span.set_attribute("gen_ai.input.messages", contents.asked(call.ask))
        return inside(call, span), span

    def child(self, plugin: str, call: Call) -> tuple[Call, Span] | None:
        """The call with a span for a plugin; None if it is not traced."""
        if call.trail.get("traceparent", UNSAMPLED).endswith(UNSAMPLED):
            return None
        span = self.tracer.start_span(plugin, W3C.extract(call.trail), attributes={"gemmapy.plugin": plugin})
        return inside(call, span), span

    async def measured(self, span: Span, call_next: Handler, call: Call) -> Reply:
        """Register the span under the call's meter, and continue."""
        mark = call.meter
        if (before := self.running.get(mark)) is not None:  # a failed attempt, if a plugin further out retries
            before.end()
        self.running[mark] = span
        return await call_next(call)

    async def heard(self, span: Span, call_next: Handler, call: Call) -> Reply:
        """The reply; the text of its answer is added to the span."""
        return (await call_next(call)).through(partial(listened, span))

    def failed(self, span: Span, error: BaseException) -> None:
        code = error.code or error.kind if isinstance(error, ProxyError) else type(error).__name__
        span.set_attribute("error.type", code)
        span.set_status(StatusCode.ERROR, code)
        span.end()

    def end(self, ended: CallEnded) -> None:
        if (span := self.running.pop(ended.meter, None)) is None:
            return
        span.set_attributes(attributes(ended))
        span.set_attribute(PROVIDER, self.speaks(ended.upstream))
        if ended.error:
            span.set_status(StatusCode.ERROR, ended.error)
        span.end()

    def attempted(self, attempt: Attempt) -> None:
        if (span := self.running.get(attempt.meter)) is None:
            return
        now = time.time_ns()
        told: dict[str, str | int] = {"gen_ai.request.model": attempt.model, "gemmapy.attempt": attempt.number}
        told[PROVIDER] = self.speaks(attempt.upstream)
        if attempt.upstream:
            told["gemmapy.upstream"] = attempt.upstream
        if attempt.error:
            told["error.type"] = attempt.error
        child = self.tracer.start_span(
            f"attempt {attempt.number}",
            set_span_in_context(span),
            SpanKind.CLIENT,
            told,
            start_time=now - int(attempt.seconds * 1e9),
        )
        if attempt.error:
            child.set_status(StatusCode.ERROR, attempt.error)
        child.end(now)

    def fell_back(self, news: FellBack) -> None:
        if (span := self.running.get(news.meter)) is not None:
            span.add_event("fallback", {"gen_ai.request.model": news.model, "error.type": news.error})


def inside(call: Call, span: Span) -> Call:
    """The call with a trail in which this span is the parent of all further ones."""
    trail = dict(call.trail)
    W3C.inject(trail, set_span_in_context(span))
    return call.but(trail=trail)


async def listened(span: Span, events: Events) -> Events:
    answer = contents.Answer()
    try:
        async for event in events:
            answer.add(event)
            yield event
    finally:
        span.set_attribute("gen_ai.output.messages", answer.as_json())


def attributes(ended: CallEnded) -> Mapping[str, str | int | float | list[str]]:
    """The known attributes; without any text of the prompt or the answer."""
    known = {
        "gen_ai.response.model": ended.model or None,
        "gen_ai.response.finish_reasons": [ended.finish] if ended.finish else None,
        "gen_ai.usage.input_tokens": ended.prompt_tokens,
        "gen_ai.usage.output_tokens": ended.completion_tokens,
        "gemmapy.upstream": ended.upstream or None,
        "gemmapy.cache": ended.cache or None,
        "gemmapy.attempts": ended.attempts,
        "gemmapy.queue_ms": ended.queue_ns / 1e6,
        "gemmapy.time_to_first_token_ms": None if ended.first_ns is None else ended.first_ns / 1e6,
        "error.type": ended.error or None,
    }
    return {name: value for name, value in known.items() if value is not None}
