"""Consumers of the metrics: the documentation page, the dashboard, and the command `top`."""

from __future__ import annotations

import asyncio
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from proxy import top
from proxy.announcements import Attempt, CallEnded, Cost, FellBack
from proxy.availability import Availability
from proxy.config import packaged
from proxy.errors import ConfigError
from proxy.upstreams.demo import Simulator
from tests.conftest import Start
from tests.plugins.metrics.test_metrics import CHAIN, CONFIG, samples
from tests.whole.commands import command

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/metrics.md").read_text()
DASHBOARD: Any = json.loads(packaged("grafana/gemmapy.json").read_text())
CALL = CallEnded("1", 0.0, "ann", "", "chat", False, "demo", "demo:latest", "local", 1, 2, 3, 4, cache="hit")


async def every(start: Start) -> str:
    """The metrics of a server on which everything that is counted has happened."""
    async with start(CONFIG + CHAIN, Simulator()) as run:
        assert (await run.chat()).status == 200
        tell = run.server.services.state["metrics"]
        more = {"cost": Cost("USD", 5, 7), "error": "x", "queue_ns": 5, "tags": {"experiment": "tone=kind"}}
        tell.ended(CallEnded(**{**fields(CALL), **more}), "ollama")
        tell.attempted(Attempt("1", "ann", "chat", "demo:latest", "local", 1, "", 0.1))
        (seen := Availability()).note(up=False)
        tell.stand({"database": seen})
        tell.fell_back(FellBack("1", "ann", "demo", "demo:latest", "x"))
        return await (await run.http.get(f"{run.url}/metrics")).text()


def fields(one: CallEnded) -> dict[str, Any]:
    return {name: getattr(one, name) for name in CallEnded.__struct_fields__}


async def test_the_page_lists_exactly_the_existing_metrics(start: Start) -> None:
    found = {
        (name.removesuffix("_count"), frozenset(key for key, _ in labels) - {"le"})
        for name, labels in samples(await every(start))
        if not re.search(r"_(bucket|sum|created)$", name) and not name.startswith(("process_", "python_"))
    }
    rows = re.findall(r"^\| `(g[a-z_]+)` \| \w+ \| (.*?) \|", PAGE, re.M)
    assert {(name, frozenset(re.findall(r"`(\w+)`", labels))) for name, labels in rows} == found


async def test_every_query_of_the_dashboard_uses_existing_metrics(start: Start) -> None:
    names = {name for name, _ in samples(await every(start))}
    queries = [one["expr"] for panel in DASHBOARD["panels"] for one in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"\b(?:gemmapy|gen_ai_(?:server|client))_\w+", query)}
    assert len(queries) > 15 and asked <= names
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


async def test_a_server_is_shown_in_a_terminal(start: Start) -> None:
    async with start(CONFIG.replace("{}, cache", "{who: public}, cache") + CHAIN) as run:
        for seed in (1, 2, 2):
            assert (await run.chat(seed=seed)).status == 200
        status, out, err = await command("top", "--url", run.url, "--once", env={"COLUMNS": "120"})
    assert status == 0, err
    assert "from the cache 33%" in out and "errors 0 (+0)" in out
    assert re.search(r"demo:latest +│ .* 3 │", out)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("keys: {ann: a-key}\nplugins: {metrics: {}}\nchains: {chat: [metrics]}", "only for admins"),
        ("chains: {chat: []}", "needs the plugin `metrics`"),
    ],
)
async def test_top_without_access_or_without_metrics_says_so(start: Start, text: str, told: str) -> None:
    async with start(text) as run:
        status, _, err = await command("top", "--url", run.url, "--once", env={"GEMMAPY_KEY": "wrong-canary"})
    assert status == 1 and told in err and "canary" not in err


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 27\r\n\r\n<b>Some app</b> {other} page", "returns no metrics"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n\xff", "cannot be asked"),
        (b"SSH-2.0-OpenSSH\r\n", "cannot be asked"),
    ],
)
async def test_top_with_another_kind_of_server_is_an_error(answer: bytes, told: str) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(ConfigError, match=told):
            await asyncio.to_thread(top.snapshot_of, url, "key")


def test_tops_url_can_include_the_path_of_the_metrics() -> None:
    assert {top.checked(f"http://one/llm{end}") for end in ("", "/", "/metrics", "/metrics/")} == {"http://one/llm"}


@pytest.mark.parametrize(
    ("url", "told"),
    [("ftp://x", "not an http"), ("http://127.0.0.1:9", "no server"), ("http://[1", "cannot be asked")],
)
async def test_top_with_an_unreachable_server_is_an_error(url: str, told: str) -> None:
    status, _, err = await command("top", "--url", url, "--once")
    assert status == 1 and told in err


def test_rates_and_times_are_since_the_previous_sample() -> None:
    ai, model = frozenset({("gen_ai_response_model", "m")}), frozenset({("model", "m")})
    seconds = "gen_ai_server_request_duration_seconds_bucket"

    def look(at: float, calls: float, quick: float, slow: float) -> top.Snapshot:
        bounds = {"0.5": quick, "1.0": quick + slow, "+Inf": quick + slow}
        series = {(seconds, ai | {("le", bound)}): count for bound, count in bounds.items()}
        return top.Snapshot(at, {("gemmapy_calls_total", model): calls, **series})

    (row,) = top.rows(look(10.0, 100, 100, 0), look(12.0, 110, 100, 10))
    assert (row.calls, row.total) == (5.0, 110)
    assert row.median == pytest.approx(0.75) and math.isnan(row.first), "the fast calls were before the previous sample"


@pytest.mark.parametrize(
    ("buckets", "part", "found"),
    [
        ({1.0: 5, 2.0: 10, math.inf: 10}, 0.5, 1.0),
        ({1.0: 0, 2.0: 10, math.inf: 10}, 0.9, 1.9),
        ({1.0: 0, math.inf: 10}, 0.5, 1.0),
        ({}, 0.5, math.nan),
    ],
)
def test_quantiles_lie_within_their_buckets(buckets: dict[float, float], part: float, found: float) -> None:
    assert top.quantile(buckets, part) == pytest.approx(found, nan_ok=True)
