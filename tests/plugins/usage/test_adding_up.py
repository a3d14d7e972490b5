"""Rows, sums and summaries are the same to the last token and billionth."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.usage import bins, sums
from plugins.usage.rows import CallRow, call_row
from plugins.usage.tables import SUMS
from proxy.announcements import CallEnded, Cost
from proxy.sql.database import Database
from proxy.upstreams.demo import Fault, Said, Simulator
from tests.conftest import ASK, Running, Start
from tests.plugins.usage.asking import OPS, A, B, config, get, rows, writer_of, written
from tests.whole.commands import served

COUNTED = ("prompt_tokens", "completion_tokens", "cached_tokens", "thinking_tokens")
MONEY = ("cost", "prompt_cost", "saved", "cloud", "energy_mj", "power")
MAYBE = st.none() | st.integers(0, 10**7)
COSTS = st.none() | st.builds(
    Cost, st.sampled_from(["USD", "EUR"]), MAYBE, MAYBE, st.integers(0, 99), MAYBE, MAYBE, MAYBE
)
CALLS = st.builds(
    CallEnded,
    id=st.just("r"),
    at=st.floats(1.7e9, 1.7e9 + 3 * 86_400),
    caller=st.sampled_from("ab"),
    key=st.sampled_from(["", "k"]),
    route=st.just("chat"),
    stream=st.booleans(),
    asked=st.just("m"),
    model=st.sampled_from(["m", "n", ""]),
    prompt_tokens=MAYBE,
    completion_tokens=MAYBE,
    cached_tokens=MAYBE,
    thinking_tokens=MAYBE,
    estimated=st.sampled_from([(), ("prompt_tokens",)]),
    queue_ns=st.integers(0, 10**12),
    eval_ns=st.integers(0, 10**12),
    first_ns=MAYBE,
    total_ns=st.integers(0, 10**13),
    cache=st.sampled_from(["", "hit", "miss", "shared"]),
    error=st.sampled_from(["", "", "upstream_cut", "client_left"]),
    cost=COSTS,
)


def total(found: Iterable[Mapping[Any, Any]], *columns: str) -> list[int]:
    return [sum(one[column] or 0 for one in found) for column in columns]


@settings(max_examples=50, deadline=None)
@given(st.lists(CALLS, min_size=1, max_size=30), st.randoms())
def test_sums_do_not_depend_on_batches(calls: list[CallEnded], chance: random.Random) -> None:
    made = [call_row(one, one.model) for one in calls]
    whole, parts = sums.summed(made), batched(made, chance)
    assert whole == parts
    for places in whole.values():
        for own in (0, 1):
            some = [one for place, one in places.items() if place[0] == own]
            dicts = [row._asdict() for row in made]
            counts = [one.counts for one in some]
            assert total(counts, *COUNTED, *MONEY) == total(dicts, *COUNTED, *MONEY)
            assert total(counts, "calls", "failed") == [
                len(made), len([row for row in made if row.error == "upstream_cut"])
            ]  # fmt: skip
            answered = [row for row in made if not row.error]
            counted = sum((one.spread["total_bins"] for one in some), Counter[int]())
            assert counted == bins.counted(row.total_ns // 1000 for row in answered)


def batched(made: list[CallRow], chance: random.Random) -> sums.Sums:
    found: sums.Sums = {span: {} for span in SUMS}
    while made:
        some, made = made[: (at := chance.randint(1, len(made)))], made[at:]
        for span, places in sums.summed(some).items():
            for place, added in places.items():
                found[span].setdefault(place, sums.SumIncrement()).add(added)
    return found


# --- a server --------------------------------------------------------------------------------------

Ask = Callable[[Running, dict[str, str]], Awaitable[object]]


def asking(**body: Any) -> Ask:
    async def ask(run: Running, who: dict[str, str]) -> None:
        response = await run.http.post(f"{run.url}/v1/chat/completions", json={**ASK, **body}, headers=who)
        await response.read()

    return ask


async def twice_at_once(run: Running, who: dict[str, str]) -> None:
    ask = asking(messages=[{"role": "user", "content": "at once"}], max_tokens=5, seed=1)
    await asyncio.gather(ask(run, who), ask(run, who))


async def embedding(run: Running, who: dict[str, str]) -> None:
    body = {"model": "demo-embed", "input": ["a", "b c"]}
    await (await run.http.post(f"{run.url}/v1/embeddings", json=body, headers=who)).read()


async def disconnecting(run: Running, who: dict[str, str]) -> None:
    body = {**ASK, "stream": True, "max_tokens": 400, "seed": 3}
    response = await run.http.post(f"{run.url}/v1/chat/completions", json=body, headers=who)
    await response.content.readany()
    response.close()


async def disconnecting_early(run: Running, who: dict[str, str]) -> None:
    """Disconnect before any of a whole answer has come."""
    body = {**ASK, "max_tokens": 4000, "seed": random.randrange(2**30)}
    await run.ollama.until(lambda: run.ollama.running == 0)  # calls of clients that disconnected before
    asked = asyncio.ensure_future(run.http.post(f"{run.url}/v1/chat/completions", json=body, headers=who))
    await run.ollama.until(lambda: run.ollama.running > 0)
    asked.cancel()
    await asyncio.wait([asked])


async def handing_over(run: Running, who: dict[str, str]) -> None:
    """The first of two clients that share a stream disconnects."""
    body = {**ASK, "stream": True, "max_tokens": 400, "seed": random.randrange(2**30)}
    first, second = [await run.http.post(f"{run.url}/v1/chat/completions", json=body, headers=who) for _ in range(2)]
    await second.content.readany()
    first.close()
    await second.read()


async def cut(run: Running, who: dict[str, str]) -> None:
    run.ollama.faults.append(Fault("eof", after=2))
    await asking(stream=True, seed=random.randrange(2**30))(run, who)


async def failed(run: Running, who: dict[str, str]) -> None:
    run.ollama.faults.append(Fault("status", times=3))
    await asking(seed=random.randrange(2**30))(run, who)


FITTING = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


async def rejected(run: Running, who: dict[str, str]) -> None:
    """Rejected twice for one model, and then answered by another, which has another price."""
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": FITTING}}
    await asking(response_format=schema, seed=random.randrange(2**30), model="demo")(run, who)


def saying(body: Mapping[str, Any]) -> Said | None:
    """An answer of one of the models that matches no schema."""
    return Said("no such thing") if body["model"] == "demo:latest" and body.get("format") else None


KINDS: list[Ask] = [
    asking(), asking(), asking(stream=True, model="demo-rendered"), asking(model="demo-thinking"),
    asking(model="nobody"), asking(model="demo-vision"), twice_at_once, embedding, disconnecting,
    disconnecting_early, handing_over, cut, failed, rejected,
]  # fmt: skip
UNPRICED = (
    "costs: {prices: {models: {'demo:*': {input: 0.15, output: 0.6, cached: 0.075}, 'demo-e*': {input: 0.013}, "
    "'demo-t*': {input: 0.333333333, output: 0.7}, 'demo-r*': {input: 1, output: 2, currency: EUR}}, "
    "cloud: {'*': {input: 2.5, output: 10}}}, energy: {per_kwh: 0.3, watts: {local: {idle: 30, busy: 250.5}}}}\n"
)


async def test_rows_sums_and_statistics_agree_for_calls_of_every_kind(start: Start, database_url: str) -> None:
    text = config(database_url, UNPRICED, "metrics, usage, limits, cache, fallback, retry")
    text = text.replace('"limits": {}', '"limits": {"limits": [{"per": "all", "tokens_per_day": 1000000000}]}')
    text = text.replace(
        '"fallback": {}', '"fallback": {"on": ["invalid_answer"], "models": {"demo": ["demo-thinking"]}}'
    )
    async with start(text, Simulator(delay=0.001, say=saying)) as run:
        kinds = KINDS * 2
        random.Random(11).shuffle(kinds)
        for number, kind in enumerate(kinds):
            await kind(run, (A, B)[number % 2])
        found = await written(run, 2 * (len(KINDS) + 2))  # two of the kinds make two calls each
        outcomes = {(one["cache"], one["error"]) for one in found}
        assert {one["cost"] is None for one in found} == {True, False}
        assert {"hit", "miss"} <= {cache for cache, _ in outcomes}
        assert {"", "client_left", "upstream_cut", "model_not_found"} <= {error for _, error in outcomes}
        assert ("shared", "client_left") in outcomes
        assert any(one["fallback"] and not one["error"] for one in found)
        await check_sums(run, found)
        await check_figures(run, found)
        await check_costs(run, found)
        await check_counters(run, found)


async def check_counters(run: Running, found: list[dict[str, Any]]) -> None:
    """Check Prometheus' counters, and a budget, which cached embeddings do not use."""
    page = await (await run.http.get(f"{run.url}/metrics", headers=OPS)).text()

    def counted(start: str, having: str = "") -> int:
        lines = [line for line in page.splitlines() if line.startswith(start + "{") and having in line]
        return int(sum(float(line.rpartition(" ")[2]) for line in lines))

    assert counted("gemmapy_calls_total") == len(found)
    kinds = {"input": "prompt", "output": "completion", "cached": "cached", "thinking": "thinking"}
    assert [counted("gemmapy_tokens_total", f'type="{kind}"') for kind in kinds] == total(
        found, *(f"{name}_tokens" for name in kinds.values())
    )
    for kind, column in (("amount", "cost"), ("saved", "saved")):
        assert [counted("gemmapy_cost_billionths_total", f'kind="{kind}"')] == total(found, column)
    made = [one for one in found if one["cache"] not in ("hit", "shared")]
    (budget,) = (await get(run, "/api/limits"))["data"]
    assert [budget["limits"]["tokens_per_day"]["used"]] == [sum(total(made, "prompt_tokens", "completion_tokens"))]


async def check_sums(run: Running, found: list[dict[str, Any]]) -> None:
    for table in SUMS.values():
        summed = await rows(writer_of(run).database, table)
        for own in (0, 1):
            some = [one for one in summed if one["own"] == own]
            assert total(some, *COUNTED, *MONEY) == total(found, *COUNTED, *MONEY)
            assert total(some, "calls") == [len(found)]


async def check_figures(run: Running, found: list[dict[str, Any]]) -> None:
    told = await get(run, "/api/metrics/dashboard?days=2")
    assert [told["total_requests"], *(told[name] for name in COUNTED)] == [len(found), *total(found, *COUNTED)]
    series = await get(run, "/api/metrics/timeseries?bucket=minute")
    assert total(series["points"], *COUNTED) == total(found, *COUNTED)
    since = int(found[0]["at"] / 1e6)
    pages = [
        await get(run, f"/v1/organization/usage/{one}?start_time={since}") for one in ("completions", "embeddings")
    ]
    results = [one for page in pages for bucket in page["data"] for one in bucket["results"]]
    assert total(results, "input_tokens", "num_model_requests") == [*total(found, "prompt_tokens"), len(found)]


async def check_costs(run: Running, found: list[dict[str, Any]]) -> None:
    day = "period=week"
    whole = await get(run, f"/api/costs/summary?{day}")
    mine = [await get(run, f"/api/costs/summary?{day}", who) for who in (A, B)]
    everybody = await get(run, f"/api/admin/costs/all?{day}")
    broken = [(await get(run, f"/api/costs/breakdown?{day}&by={by}"))["rows"] for by in ("model", "user", "key", "day")]
    billed = await get(run, f"/v1/organization/costs?start_time={int(found[0]['at'] / 1e6)}", OPS)
    amounts = [one["amount"] for bucket in billed["data"] for one in bucket["results"]]
    for currency in ("USD", "EUR"):
        exact = sum(Decimal(one["cost"] or 0) for one in found if one["currency"] == currency) / 10**9
        assert exact > 0
        for parts in ([whole], mine, [everybody], everybody["users"], whole["breakdown"], *broken):
            assert spent(parts, currency) == exact
        assert sum(one["value"] for one in amounts if one["currency"] == currency.lower()) == exact
    unpriced = len([one for one in found if one["cost"] is None])
    assert whole["unpriced_requests"] == total(mine, "unpriced_requests")[0] == unpriced > 0


def spent(parts: Iterable[Mapping[str, Any]], currency: str) -> Decimal:
    return sum(
        (
            one["total_cost"] or Decimal(0)
            for part in parts
            for one in part["by_currency"]
            if one["currency"] == currency
        ),
        Decimal(0),
    )


# --- processes -------------------------------------------------------------------------------------


async def test_a_killed_process_loses_only_unwritten_rows(tmp_path: Path) -> None:
    path, url = tmp_path / "c.yaml", f"sqlite:///{tmp_path}/records.db"
    path.write_text(
        f"listen: {{port: 0}}\nupstreams: {{demo: {{demo: {{}}}}}}\ndatabase: {{url: '{url}'}}\n"
        "plugins: {usage: {}}\nchains: {chat: [usage]}\n"
    )
    database = Database(url, 1, 10)
    async with served("serve", "--config", str(path)) as server, aiohttp.ClientSession() as http:

        async def calls(count: int) -> None:
            for _ in range(count):
                await (await http.post(f"{server.url}/v1/chat/completions", json=ASK)).read()

        await calls(20)
        async with asyncio.timeout(10):
            while len(await rows(database)) < 20:  # noqa: ASYNC110  (another process writes them)
                await asyncio.sleep(0.02)
        await calls(5)
        server.process.kill()
        await server.process.wait()
    found = await rows(database)
    (day,) = [one["calls"] for one in await rows(database, SUMS[86_400]) if not one["own"]]
    await database.aclose()
    assert 20 <= len(found) == day <= 25


async def test_several_servers_write_into_one_database(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as one, start(config(database_url)) as other:
        await asyncio.gather(*(asking(seed=n)(run, A) for n in range(30) for run in (one, other)))
        await asyncio.gather(writer_of(one).flush(), writer_of(other).flush())
        assert (await get(one, "/api/metrics/dashboard")) == (await get(other, "/api/metrics/dashboard"))
        await check_sums(one, await written(other, 60))
