"""The metrics, named as in OpenTelemetry's conventions for generative AI where these have a name."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from proxy import __version__
from proxy.announcements import BROKEN_OFF, Attempt, CallEnded, FellBack
from proxy.host import Availability

MOST: Final = 100
"""Maximum number of values of one label; further ones become `other`."""
OTHER: Final = "other"
SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
PER_TOKEN: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS: Final = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
OPERATIONS: Final = {"chat": "chat", "completions": "text_completion", "embeddings": "embeddings"}
"""The conventions' names for the routes."""


class Values:
    """The values of one label, bounded: names that clients and upstreams choose must not create unlimited series."""

    def __init__(self) -> None:
        self.known: set[str] = set()

    def of(self, name: str) -> str:
        if name not in self.known:
            if len(self.known) >= MOST:
                return OTHER
            self.known.add(name)
        return name


class Instruments:
    """registry: None if the values are kept in files.  The labels are described in docs/metrics.md."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        self.models, self.upstreams, self.codes, self.arms = Values(), Values(), Values(), Values()
        ai = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_response_model")
        self.duration = histogram(
            "gen_ai_server_request_duration_seconds", "Until a call was over.", (*ai, "error_type"), SECONDS, registry
        )
        self.first = histogram(
            "gen_ai_server_time_to_first_token_seconds", "Until an answer began.", ai, SECONDS, registry
        )
        self.pace = histogram(
            "gen_ai_server_time_per_output_token_seconds", "Between two tokens.", ai, PER_TOKEN, registry
        )
        self.usage = histogram(
            "gen_ai_client_token_usage", "Tokens of a call.", (*ai, "gen_ai_token_type"), TOKENS, registry
        )
        self.calls = counter(
            "gemmapy_calls", "Calls that are over.", ("route", "model", "upstream", "outcome", "cache"), registry
        )
        self.tokens = counter("gemmapy_tokens", "Tokens.", ("route", "model", "type"), registry)
        self.errors = counter("gemmapy_errors", "Calls that failed.", ("route", "code"), registry)
        self.attempts = counter("gemmapy_attempts", "Tries of calls.", ("model", "upstream", "outcome"), registry)
        self.fallbacks = counter("gemmapy_fallbacks", "Calls that went on to another model.", ("model",), registry)
        self.arm_calls = counter("gemmapy_experiment_calls", "Calls of a variant.", ("arm", "outcome"), registry)
        self.cost = counter(
            "gemmapy_cost_billionths", "Billionths of the currency's unit.", ("currency", "model", "kind"), registry
        )
        self.queue = histogram("gemmapy_queue_seconds", "In line for a host.", ("upstream",), SECONDS, registry)
        self.running = Gauge(
            "gemmapy_calls_in_flight", "Calls under way.", ("route",), registry=registry, multiprocess_mode="sum"
        )
        for route in (*OPERATIONS, "internal"):  # a worker that died in this place may have had calls in progress
            self.running.labels(route).set(0)
        self.store_up = store_gauge(registry)
        self.looked: dict[str, tuple[Availability, int]] = {}
        """By store, what was last reported here."""
        if registry is not None:
            Info("gemmapy_build", "This server.", registry=registry).info({"version": __version__})

    def ended(self, one: CallEnded, provider: str) -> None:
        """provider: the API that the call's upstream speaks."""
        model, upstream = self.model(one), self.upstreams.of(one.upstream)
        ai = OPERATIONS.get(one.route, one.route), provider, model
        outcome = one.error if one.error in ("", "client_left") else "error"
        self.calls.labels(one.route, model, upstream, outcome or "ok", one.cache).inc()
        self.duration.labels(*ai, self.codes.of(one.error)).observe(one.total_ns / 1e9)
        if one.error:
            self.errors.labels(one.route, self.codes.of(one.error)).inc()
        if one.first_ns is not None:
            self.first.labels(*ai).observe(one.first_ns / 1e9)
        if one.eval_ns and one.completion_tokens:
            self.pace.labels(*ai).observe(one.eval_ns / 1e9 / one.completion_tokens)
        if one.queue_ns:
            self.queue.labels(upstream).observe(one.queue_ns / 1e9)
        if arm := one.tags.get("experiment"):
            self.arm_calls.labels(self.arms.of(arm), outcome or "ok").inc()
        self.count_tokens(one, ai)
        self.count_cost(one, model)

    def count_tokens(self, one: CallEnded, ai: tuple[str, str, str]) -> None:
        """ai: the labels of the conventions; the last one is the model."""
        model = ai[-1]
        for kind, tokens in (("input", one.prompt_tokens), ("output", one.completion_tokens)):
            if tokens is not None:
                self.tokens.labels(one.route, model, kind).inc(tokens)
                self.usage.labels(*ai, kind).observe(tokens)
        for kind, tokens in (("cached", one.cached_tokens), ("thinking", one.thinking_tokens)):
            if tokens:
                self.tokens.labels(one.route, model, kind).inc(tokens)

    def count_cost(self, one: CallEnded, model: str) -> None:
        if one.cost is not None:
            for kind, money in (("amount", one.cost.amount), ("saved", one.cost.saved)):
                if money:
                    self.cost.labels(one.cost.currency, model, kind).inc(money)

    def attempted(self, one: Attempt) -> None:
        model = self.models.of(one.model) if one.upstream else self.known(one.model)
        outcome = "broken_off" if one.error in BROKEN_OFF else "error" if one.error else "ok"
        self.attempts.labels(model, self.upstreams.of(one.upstream), outcome).inc()

    def fell_back(self, one: FellBack) -> None:
        self.fallbacks.labels(self.known(one.model)).inc()

    def stand(self, stores: Mapping[str, Availability]) -> None:
        """Report only new observations: of several workers, the one that asked the store last is right."""
        asked = {name: state for name, state in stores.items() if state.times}
        for name, state in asked.items():
            if self.looked.get(name) != (state, state.times):
                self.looked[name] = state, state.times
                self.store_up.labels(name).set(state.up)
        for name in self.looked.keys() - asked.keys():  # a reload has removed or replaced it
            self.store_up.labels(name).set(nan)
            del self.looked[name]

    def model(self, one: CallEnded) -> str:
        """Only a model that has answered becomes a label value, because callers may ask for any name."""
        return self.models.of(one.model) if one.model else self.known(one.asked)

    def known(self, name: str) -> str:
        return next((one for one in (name, f"{name}:latest") if one in self.models.known), OTHER)


def counter(name: str, told: str, labels: tuple[str, ...], registry: CollectorRegistry | None) -> Counter:
    return Counter(name, told, labels, registry=registry)


def store_gauge(registry: CollectorRegistry | None) -> Gauge:
    """Of several workers, the one that used a store last knows whether it answers."""
    name, what = "gemmapy_store_up", "Whether a store answered when it was last used."
    return Gauge(name, what, ("store",), registry=registry, multiprocess_mode="mostrecent")


def histogram(
    name: str, told: str, labels: tuple[str, ...], buckets: tuple[float, ...], registry: CollectorRegistry | None
) -> Histogram:
    return Histogram(name, told, labels, buckets=buckets, registry=registry)
