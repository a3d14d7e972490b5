"""A trace of every call, sent by OTLP."""

from __future__ import annotations

import asyncio
from functools import partial
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr

from proxy.announcements import Attempt, CallEnded, FellBack
from proxy.config import Strict
from proxy.errors import ConfigError
from proxy.host import Host
from proxy.meter import metered
from proxy.types import Call, Handler, Plugin, Reply

if TYPE_CHECKING:  # an optional dependency
    from plugins.traces.spans import Spans


class Traces:
    """Sends a span for each call, with children for its plugins and attempts, by OTLP over HTTP.

    Put it first in the chain, so that nothing that happens to a call is missed.
    """

    class Settings(Strict):
        endpoint: str = Field("http://127.0.0.1:4318/v1/traces", pattern="^https?://")
        """Where spans are sent, by OTLP over HTTP."""
        headers: dict[str, SecretStr] = Field(default_factory=dict)
        """Headers of these requests, such as a key."""
        service: str = "gemmapy-proxy"
        """The name of this server in traces."""
        sample: float = Field(1.0, ge=0, le=1)
        """Share of calls that are traced if the client does not decide in `traceparent`."""
        contents: bool = False
        """Whether spans contain the text of questions and answers, up to some 4,000 characters of each message."""
        queue: PositiveInt = 4096
        """Spans that wait to be sent; further ones are dropped."""
        timeout: PositiveFloat = 5.0
        """Seconds that a request may take; a stopping server waits as long for the last one."""

    def __init__(self, settings: Settings, host: Host) -> None:
        if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter") is None:
            raise ConfigError(["traces need an extra: pip install 'gemmapy-proxy[otel]'"])
        self.settings = settings
        self.host = host
        self.open: Spans | None = None
        host.on(CallEnded, lambda ended: self.spans.end(ended))
        host.on(Attempt, lambda attempt: self.spans.attempted(attempt))
        host.on(FellBack, lambda news: self.spans.fell_back(news))

    @property
    def spans(self) -> Spans:
        if self.open is None:
            raise LookupError("the traces are not open")
        return self.open

    async def __aenter__(self) -> Traces:
        from plugins.traces.spans import Spans, provider_of

        keys = {name: value.get_secret_value() for name, value in self.settings.headers.items()}
        self.open = Spans(provider_of(self.settings, keys), self.settings.contents, self.host.models.provider)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.spans.provider.shutdown)  # sends the remaining spans

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        traced, span = self.spans.begin(call)
        if self.settings.contents and span.is_recording():
            call_next = partial(self.spans.heard, span, call_next)
        return await metered(traced, partial(self.spans.measured, span, call_next), self.host)

    def around(self, name: str, plugin: Plugin) -> Plugin:
        """Wraps a plugin in a span for every call, which ends when the answer has passed the plugin."""

        async def watched(call: Call, call_next: Handler) -> Reply:
            child = self.spans.child(name, call)
            if child is None:
                return await plugin(call, call_next)
            traced, span = child
            try:
                reply = await plugin(traced, call_next)
            except BaseException as error:
                self.spans.failed(span, error)
                raise
            return reply.on_close(span.end)

        return watched
