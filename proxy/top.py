"""A live view of a running server in a terminal, made from its `/metrics`."""

from __future__ import annotations

import math
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Final

from proxy.errors import ConfigError

EVERY: Final = 1.0
"""Seconds between two refreshes."""
PATIENCE: Final = 5.0
MOST: Final = 16 * 1024 * 1024
"""Maximum bytes that are read of one answer."""
MODEL: Final = "gen_ai_response_model"
Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All metrics at one moment.  at: monotonic seconds."""

    at: float
    series: Mapping[tuple[str, Labels], float] = field(default_factory=dict)

    def sum(self, name: str, **labels: str) -> float:
        wanted = set(labels.items())
        return sum(value for (one, told), value in self.series.items() if one == name and wanted <= told)

    def values(self, name: str, label: str) -> list[str]:
        return sorted(
            {value for (one, told), _ in self.series.items() if one == name for key, value in told if key == label}
        )

    def buckets(self, name: str, **labels: str) -> Mapping[float, float]:
        """A histogram's buckets: upper bound -> how many values are not above it."""
        wanted, found = set(labels.items()), defaultdict[float, float](float)
        for (one, told), value in self.series.items():
            if one == f"{name}_bucket" and wanted <= told:
                found[float(dict(told)["le"])] += value
        return found


@dataclass(frozen=True, slots=True)
class Row:
    """One model since the previous look.  Rates are per second, times in seconds; NaN means unknown."""

    model: str
    calls: float
    tokens: float
    median: float
    slowest: float
    first: float
    total: float


def rows(before: Snapshot, now: Snapshot) -> list[Row]:
    """One row per model, the busiest first.  If there were no new calls, the times are those of all calls so far."""
    seconds = max(now.at - before.at, 1e-9)
    found = []
    for model in now.values("gemmapy_calls_total", "model"):
        calls, tokens = (
            (now.sum(name, **told) - before.sum(name, **told)) / seconds
            for name, told in (
                ("gemmapy_calls_total", {"model": model}),
                ("gemmapy_tokens_total", {"model": model, "type": "output"}),
            )
        )
        whole, first = "gen_ai_server_request_duration_seconds", "gen_ai_server_time_to_first_token_seconds"
        times = [since(before, now, name, model) for name in (whole, first)]
        median, slowest, begun = quantile(times[0], 0.5), quantile(times[0], 0.99), quantile(times[1], 0.5)
        found.append(Row(model, calls, tokens, median, slowest, begun, now.sum("gemmapy_calls_total", model=model)))
    return sorted(found, key=lambda row: (-row.calls, -row.total, row.model))


def since(before: Snapshot, now: Snapshot, name: str, model: str) -> Mapping[float, float]:
    early, late = before.buckets(name, **{MODEL: model}), now.buckets(name, **{MODEL: model})
    fresh = {bound: count - early.get(bound, 0.0) for bound, count in late.items()}
    return fresh if any(fresh.values()) else late


def quantile(buckets: Mapping[float, float], part: float) -> float:
    """The quantile `part`, interpolated linearly within its bucket; NaN if there are no values."""
    count = buckets.get(math.inf, 0.0)
    lower = below = 0.0
    for bound in sorted(buckets):
        if buckets[bound] >= part * count > 0:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (part * count - below) / (buckets[bound] - below)
        lower, below = bound, buckets[bound]
    return math.nan


def snapshot_of(url: str, key: str) -> Snapshot:
    """The server's metrics now.  Raises ConfigError, which says what the problem is."""
    from prometheus_client.parser import text_string_to_metric_families

    text = page(url, key)
    try:
        families = list(text_string_to_metric_families(text))
    except ValueError as error:
        raise ConfigError([f"{url}/metrics returns no metrics: is another server running there?"]) from error
    series = {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}
    return Snapshot(time.monotonic(), series)


def page(url: str, key: str) -> str:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        asked = urllib.request.Request(f"{url.rstrip('/')}/metrics", headers=headers)  # noqa: S310  (`checked` is http)
        with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:  # noqa: S310
            return str(answer.read(MOST).decode())
    except urllib.error.HTTPError as error:
        raise ConfigError([refused(error.code, url)]) from error
    except OSError as error:
        raise ConfigError([f"no server answers at {url}: {getattr(error, 'reason', error)}"]) from error
    except (HTTPException, ValueError) as error:  # a URL, a key or an answer that is not valid in HTTP
        raise ConfigError([f"{url} cannot be asked: {error}"]) from error


def refused(status: int, url: str) -> str:
    if status in (401, 403):
        return f"{url}/metrics is only for admins: pass --key KEY, or set GEMMAPY_KEY"
    if status == 404:
        return f"{url} has no /metrics: its configuration needs the plugin `metrics`"
    return f"{url}/metrics answered with status {status}"


def checked(url: str) -> str:
    """The server's base URL.  Raises ConfigError if it is not an HTTP URL."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError([f"{url!r} is not an http:// or https:// URL"])
    return url.rstrip("/").removesuffix("/metrics").rstrip("/")


def summary(before: Snapshot, now: Snapshot) -> str:
    kept = [now.sum("gemmapy_calls_total", cache=outcome) for outcome in ("hit", "shared", "miss")]
    hits = f"{(kept[0] + kept[1]) / sum(kept):.0%}" if sum(kept) else "-"
    errors = now.sum("gemmapy_calls_total", outcome="error")
    fresh = errors - before.sum("gemmapy_calls_total", outcome="error")
    line = now.sum("gemmapy_queue_seconds_count") - before.sum("gemmapy_queue_seconds_count")
    told = {
        "under way": f"{now.sum('gemmapy_calls_in_flight'):.0f}",
        "from the cache": hits,
        "waited in line": f"{line:.0f}",
        "errors": f"{errors:.0f} (+{fresh:.0f})",
    }
    return "   ".join(f"{name} {value}" for name, value in told.items())


def shown(row: Row) -> Iterable[str]:
    yield row.model
    yield from (f"{row.calls:.1f}", f"{row.tokens:.0f}")
    yield from ("-" if math.isnan(one) else f"{one:.2f}" for one in (row.median, row.slowest, row.first))
    yield f"{row.total:.0f}"


HEADS: Final = ("model", "calls/s", "tokens/s", "p50 s", "p99 s", "first s", "calls")


def run(url: str, key: str, once: bool) -> None:
    """Show the view until interrupted.  Raises ConfigError."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table

    def frame(before: Snapshot, now: Snapshot) -> Group:
        table = Table(*HEADS, title=f"{url}   {summary(before, now)}", title_justify="left", expand=not once)
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows(before, now):
            table.add_row(*shown(row))
        return Group(table)

    url, console = checked(url), Console()
    now = snapshot_of(url, key)
    if once:
        console.print(frame(now, now))
        return
    try:
        with Live(frame(now, now), console=console, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(EVERY)
                before, now = now, snapshot_of(url, key)
                live.update(frame(before, now), refresh=True)
    except KeyboardInterrupt:
        return
