"""A trace of every call, sent by OTLP."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr

from proxy.config import Strict
from proxy.errors import ConfigError
from proxy.host import Host
from proxy.meter import metered
from proxy.news import Attempt, CallEnded, FellBack
from proxy.types import Call, Handler, Reply

if TYPE_CHECKING:  # an extra
    from plugins.traces.spans import Spans


class Traces:
    """One span a call, with children for its attempts, sent by OTLP over HTTP.

    Stand it outermost, so that nothing that happens to a call is missed.
    """

    class Settings(Strict):
        endpoint: str = Field("http://127.0.0.1:4318/v1/traces", pattern="^https?://")
        """Where spans are posted, by OTLP over HTTP."""
        headers: dict[str, SecretStr] = Field(default_factory=dict)
        """Headers of these posts, such as a key."""
        service: str = "gemmapy-proxy"
        """The name of this server in traces."""
        sample: float = Field(1.0, ge=0, le=1)
        """The part of calls that is traced, where the client does not say so in `traceparent`."""
        queue: PositiveInt = 4096
        """Spans that wait to be sent; further ones are dropped."""
        timeout: PositiveFloat = 5.0
        """Seconds that a post may take."""

    def __init__(self, settings: Settings, host: Host) -> None:
        if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter") is None:
            raise ConfigError(["traces need an extra: pip install 'gemmapy-proxy[otel]'"])
        self.settings = settings
        self.host = host
        self.spans: Spans | None = None
        host.on(CallEnded, self.ended)
        host.on(Attempt, self.attempted)
        host.on(FellBack, self.fell_back)

    async def __aenter__(self) -> Traces:
        from plugins.traces.spans import Spans, provider_of

        keys = {name: value.get_secret_value() for name, value in self.settings.headers.items()}
        self.spans = Spans(provider_of(self.settings, keys))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.spans is not None:
            await asyncio.to_thread(self.spans.provider.shutdown)  # which sends what still waits

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        if self.spans is not None:
            call = self.spans.begin(call)
        return await metered(call, call_next, self.host)

    def ended(self, ended: CallEnded) -> None:
        if self.spans is not None:
            self.spans.end(ended)

    def attempted(self, attempt: Attempt) -> None:
        if self.spans is not None:
            self.spans.attempted(attempt)

    def fell_back(self, news: FellBack) -> None:
        if self.spans is not None:
            self.spans.fell_back(news)
