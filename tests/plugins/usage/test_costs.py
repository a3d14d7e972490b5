"""The costs of calls, added up exactly and shown with all digits."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
from sqlalchemy import update

from plugins.usage.money import begin, next_month, spelled
from plugins.usage.tables import SUMS
from tests.conftest import Running, Start
from tests.plugins.usage.asking import OPS, A, B, chat, config, get, writer_of, written

BILLION = Decimal(10**9)


def sum_of(rows: list[dict[str, Any]], column: str = "cost") -> Decimal:
    return sum((Decimal(one[column] or 0) for one in rows), Decimal(0)) / BILLION


def test_money_is_written_with_all_its_digits() -> None:
    cases = {0: "0", 1: "0.000000001", 105_000: "0.000105", 10**9: "1", 12_500_000_000: "12.5", 10**12: "1000"}
    assert {number: spelled(number) for number in cases} == cases


def test_weeks_begin_on_monday_and_months_end() -> None:
    day = datetime(2026, 12, 31, tzinfo=UTC).date()
    assert [str(begin(one, day)) for one in ("day", "week", "month")] == ["2026-12-31", "2026-12-28", "2026-12-01"]
    assert str(next_month(day)) == "2027-01-01"


async def make_calls(run: Running) -> list[dict[str, Any]]:
    await chat(run, A), await chat(run, A), await chat(run, B, stream=True)
    await chat(run, A, model="demo-thinking")
    return await written(run, 4)


async def test_costs_of_a_deleted_caller_stay_in_the_overall_sum(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run:
        await make_calls(run)
        before = await get(run, "/api/admin/costs/all")
        async with run.http.delete(f"{run.url}/api/me/data", headers=B) as response:
            assert response.status == 200
        whole, everybody = [await get(run, f"/api{path}") for path in ("/costs/summary", "/admin/costs/all")]
    assert [one["user"] for one in everybody["users"]] == ["alice"] != [one["user"] for one in before["users"]]
    assert everybody["total_cost"] == whole["total_cost"] == before["total_cost"]
    assert everybody["total_requests"] == whole["total_requests"] == 4


async def test_the_summary_is_the_sum_of_its_calls(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run:
        found = await make_calls(run)
        whole = await get(run, "/api/costs/summary")
        mine = await get(run, "/api/costs/summary?period=day", B)
        everybody = await get(run, "/api/admin/costs/all")
        projected = await get(run, "/api/costs/projection")
        by = {one: await get(run, f"/api/costs/breakdown?by={one}") for one in ("model", "user", "key", "day")}
        assert (await get(run, "/api/admin/costs/all", A, 403))["error"]["code"] == "insufficient_permissions"
    assert (whole["total_cost"], whole["currency"]) == (sum_of(found), "USD") and whole["total_cost"] > 0
    assert whole["prompt_cost"] + whole["response_cost"] == whole["total_cost"]
    assert (whole["saved"], whole["cloud_cost"]) == (sum_of(found, "saved"), sum_of(found, "cloud"))
    assert (
        whole["energy_cost"] == sum_of(found, "power") > 0
        and whole["energy_kwh"] > 0
        and whole["saved"] == sum_of(found[:1])
    )
    assert (whole["unpriced_requests"], whole["cached_requests"]) == (0, 1)
    assert sum(one["total_cost"] for one in whole["breakdown"]) == whole["total_cost"]
    assert mine["total_cost"] == sum_of([one for one in found if one["caller"] == "bob"])
    assert [one["user"] for one in everybody["users"]] == ["alice", "bob"]
    assert sum(one["total_cost"] for one in everybody["users"]) == everybody["total_cost"] == whole["total_cost"]
    for rows in by.values():
        assert sum(one["total_cost"] for one in rows["rows"]) == whole["total_cost"]
    assert projected["total_cost"] == whole["total_cost"] <= projected["projected_cost"]


async def test_sums_beyond_the_databases_integers_are_exact(start: Start, database_url: str) -> None:
    """Nine billion units are not much in some currencies."""
    async with start(config(database_url)) as run:
        await chat(run, A), await chat(run, A, model="demo-thinking")
        await written(run, 2)
        async with writer_of(run).database.writing() as connection:
            for table in SUMS.values():
                await connection.execute(update(table).values(cost=2**63 - 2, cloud=5 * 10**18))
        await chat(run, A, seed=1)
        assert len(await written(run, 3)) == 3 and writer_of(run).lost == 0
        whole = await get(run, "/api/costs/summary")
        billed = await get(run, f"/v1/organization/costs?start_time={int(run.server.services.clock.time()) - 86_400}")
        by = (await get(run, "/api/costs/breakdown?by=model"))["rows"]
    assert whole["total_cost"] == Decimal(2**64 - 3) / BILLION and 10**10 < whole["cloud_cost"] < 10**10 + 1
    assert sum(one["total_cost"] for one in by) == whole["total_cost"]
    amounts = [one["amount"]["value"] for bucket in billed["data"] for one in bucket["results"]]
    assert sum(amounts) == whole["total_cost"]


async def test_models_without_a_price_cost_null_and_are_counted(start: Start, database_url: str) -> None:
    more = "costs: {prices: {models: {demo: {input: 1, output: 1}}}}\n"
    async with start(config(database_url, more)) as run:
        found = await make_calls(run)
        whole = await get(run, "/api/costs/summary")
        since = int(found[0]["at"] / 1e6)
        billed = await get(run, f"/v1/organization/costs?start_time={since}&group_by=line_item")
    assert [one["cost"] is None for one in found] == [False, False, False, True]
    items = [one for bucket in billed["data"] for one in bucket["results"]]
    assert {one["line_item"]: one["amount"]["value"] for one in items} == {
        "demo-thinking:latest": None,
        "demo:latest": sum_of(found),
    }
    assert whole["unpriced_requests"] == 1 and whole["total_cost"] == sum_of(found)
    assert {one["model"]: one["total_cost"] is None for one in whole["breakdown"]} == {
        "demo-thinking:latest": True,
        "demo:latest": False,
    }


async def test_without_prices_everything_costs_null(start: Start, database_url: str) -> None:
    async with start(config(database_url, "costs: {}\n")) as run:
        await make_calls(run)
        whole = await get(run, "/api/costs/summary")
    assert (whole["total_cost"], whole["currency"], whole["unpriced_requests"]) == (None, None, 4)
    assert (whole["energy_kwh"], whole["energy_cost"]) == (None, None)


async def test_the_projection_is_null_if_no_call_had_a_price(start: Start, tmp_path: Path) -> None:
    more = "costs: {prices: {models: {demo: {input: 1, output: 1}}}}\n"
    async with start(config(f"sqlite:///{tmp_path / 'records.db'}", more)) as run:
        await chat(run, A), await chat(run, B, model="demo-thinking")
        found = await written(run, 2)
        ann, bob, nobody = [await get(run, f"/api/costs/projection?user={one}") for one in ("alice", "bob", "nobody")]
    amounts = "total_cost", "daily_mean", "projected_cost"
    assert ann["total_cost"] == sum_of(found[:1]) and None not in [ann[one] for one in amounts]
    for one in (bob, nobody, *bob["by_currency"]):
        assert [one[name] for name in amounts] == [None, None, None]
    assert (ann["currency"], bob["currency"], nobody["currency"]) == ("USD", "USD", None)
    assert (bob["unpriced_requests"], nobody["unpriced_requests"], nobody["by_currency"]) == (1, 0, [])


async def test_unknown_energy_is_null_and_no_consumption_is_zero(start: Start, database_url: str) -> None:
    prices = "prices: {models: {'demo*': {input: 1, output: 1}}}"
    for energy, drawn, cost in (
        ("", None, None),
        (", energy: {watts: {local: {idle: 30, busy: 250}}}", 0, None),
        (", energy: {per_kwh: 0.3, watts: {local: {idle: 30, busy: 250}}}", 0, 0),
    ):
        async with start(config(database_url, f"costs: {{{prices}{energy}}}\n")) as run:
            await chat(run, B), await chat(run, B)
            await written(run)
            whole, nobody = [await get(run, f"/api/costs/summary?user={user}") for user in ("bob", "alice")]
        assert (nobody["energy_kwh"], whole["energy_kwh"] is None) == (drawn, drawn is None), energy
        assert (whole["energy_cost"] is None) == (cost is None), energy


async def test_energy_is_reported_only_for_upstreams_with_known_power(start: Start, database_url: str) -> None:
    more = (
        "costs: {prices: {models: {'demo*': {input: 1, output: 1}}}, "
        "energy: {per_kwh: 0.3, watts: {local: {busy: 250}}}}\n"
        "models: {demo-thinking: {upstream: other}}\n"
        "upstreams: {local: {ollama: $OLLAMA}, other: {ollama: $OLLAMA}}\n"
    )
    async with start(config(database_url, more)) as run:
        for who, model in (
            (A, "demo"),
            (A, "demo-thinking"),
            (B, "demo-thinking"),
            (B, "demo-thinking"),
            (OPS, "none"),
        ):
            await chat(run, who, model=model)
        found = await written(run, 5)
        costs = {name: await get(run, f"/api/costs/summary?user={name}") for name in ("alice", "bob", "ops", "nobody")}
        users = (await get(run, "/api/admin/costs/all"))["users"]
    assert [(one["upstream"], one["cache"]) for one in found] == [
        ("local", "miss"), ("other", "miss"), ("other", "miss"), ("other", "hit"), ("", ""),
    ]  # fmt: skip
    assert costs["alice"]["energy_kwh"] > 0 and costs["alice"]["energy_cost"] == sum_of(found[:1], "power") > 0
    assert (costs["bob"]["energy_kwh"], costs["bob"]["energy_cost"]) == (None, None), "0 would be wrong"
    assert (costs["ops"]["energy_kwh"], costs["nobody"]["energy_kwh"]) == (0, 0)
    assert [one["energy_kwh"] for one in users] == [costs[name]["energy_kwh"] for name in ("alice", "bob", "ops")]


async def test_currencies_are_not_added_up(start: Start, database_url: str) -> None:
    prices = "{'*': {input: 1, output: 1}, 'demo-thinking*': {input: 1, output: 1, currency: EUR}}"
    async with start(config(database_url, f"costs: {{prices: {{models: {prices}}}}}\n")) as run:
        found = await make_calls(run)
        whole = await get(run, "/api/costs/summary")
        projected = await get(run, "/api/costs/projection")
    assert whole["total_cost"] is None and projected["projected_cost"] is None
    assert {one["currency"]: one["total_cost"] for one in whole["by_currency"]} == {
        "EUR": sum_of(found[3:]),
        "USD": sum_of(found[:3]),
    }


async def test_openais_sdk_reads_usage_and_costs(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run:
        found = await make_calls(run)
        await (await run.http.post(f"{run.url}/v1/embeddings", json={"model": "demo-embed", "input": "hi"},
                                   headers=A)).read()  # fmt: skip
        embedded = (await written(run, 5))[-1]
        client = openai.AsyncOpenAI(base_url=f"{run.url}/v1", api_key="o-key", admin_api_key="o-key", max_retries=0)
        usage, since = client.admin.organization.usage, int(found[0]["at"] / 1e6) - 2 * 86_400
        for width in ("1m", "1h", "1d"):
            start_time = since if width != "1m" else int(found[0]["at"] / 1e6) - 600
            page = await usage.completions(
                start_time=start_time, bucket_width=width, group_by=["model", "user_id"],
                limit=60 if width != "1d" else 3,
            )  # fmt: skip
            results: list[Any] = [one for bucket in page.data for one in bucket.results]
            assert sum(one.input_tokens for one in results) == sum(one["prompt_tokens"] for one in found)
            assert {(one.model, one.user_id, one.num_model_requests) for one in results} == {
                ("demo:latest", "alice", 2), ("demo:latest", "bob", 1), ("demo-thinking:latest", "alice", 1),
            }  # fmt: skip
        embeddings = await usage.embeddings(start_time=since)
        (one,) = [one for bucket in embeddings.data for one in bucket.results]
        assert getattr(one, "input_tokens", 0) == embedded["prompt_tokens"]
        await client.close()


async def test_costs_are_paged(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run:
        found = await make_calls(run)
        client = openai.AsyncOpenAI(base_url=f"{run.url}/v1", api_key="o-key", admin_api_key="o-key", max_retries=0)
        usage, since = client.admin.organization.usage, int(found[0]["at"] / 1e6) - 2 * 86_400
        first = await usage.costs(start_time=since, limit=2, group_by=["line_item"])
        assert first.has_more and [bucket.results for bucket in first.data] == [[], []]
        second = await usage.costs(start_time=since, limit=2, group_by=["line_item"], page=first.next_page or "")
        (bucket,) = second.data
        spent = {str(one.line_item): one.amount for one in bucket.results}  # type: ignore[union-attr]
        thought = spent["demo-thinking:latest"]
        assert thought is not None and Decimal(str(thought.value)) == sum_of(found[3:]) and thought.currency == "usd"
        assert not second.has_more
        nobody = await usage.completions(start_time=since, user_ids=["nobody"])
        assert not [one for bucket in nobody.data for one in bucket.results]
        await client.close()
        refused = await get(run, "/v1/organization/costs?start_time=0", A, 403)
        assert refused["error"]["code"] == "insufficient_permissions"
        assert (await get(run, "/v1/organization/costs", status=400))["error"]["param"] == "start_time"
        assert (await get(run, "/v1/organization/costs?start_time=0&limit=999", status=400))["error"][
            "param"
        ] == "limit"


async def test_calls_without_a_price_are_not_a_second_currency(start: Start, tmp_path: Path) -> None:
    more = "costs: {prices: {models: {'demo:*': {input: 1, output: 1, currency: EUR}}}}\n"
    async with start(config(f"sqlite:///{tmp_path / 'records.db'}", more)) as run:
        for model in ("demo", "none", "demo-thinking"):
            await chat(run, model=model)
        found = await written(run, 3)
        summary, projection = [await get(run, f"/api/costs/{one}") for one in ("summary", "projection")]
    assert (summary["currency"], summary["total_cost"], summary["unpriced_requests"]) == ("EUR", sum_of(found), 1)
    assert (projection["currency"], projection["total_cost"]) == ("EUR", sum_of(found)) and sum_of(found) > 0
