"""Prices that are set while the server runs."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from sqlalchemy import insert

from plugins.usage.tables import PRICES
from tests.conftest import Start
from tests.plugins.usage.asking import OPS, A, chat, config, get, writer_of, written
from tests.servers import PostgresServer


async def test_prices_set_at_run_time_apply_from_then_on(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run, start(config(database_url)) as other:
        await chat(run)
        put = {"models": {"demo*": {"input": 1.5, "output": 6, "cached": 0.75}}, "cloud": {"*": None}}
        response = await run.http.put(f"{run.url}/api/admin/costs/pricing", json=put, headers=OPS)
        assert response.status == 200
        await get(other, "/api/admin/costs/pricing")  # reads prices at once; by itself it does every two seconds
        for one in (run, other):
            await chat(one, A, seed=1)
            await writer_of(one).flush()
        found = await written(run, 3)
        listed = await get(run, "/api/admin/costs/pricing")
        assert (await get(run, "/api/admin/costs/pricing", A, 403))["error"]
        wrong = {"models": {"demo*": {"input": -1}}}
        response = await run.http.put(f"{run.url}/api/admin/costs/pricing", json=wrong, headers=OPS)
        assert response.status == 400
    rate = [one["cost"] / (one["completion_tokens"] * 600 + cached(one)) for one in found]
    assert rate == [1, 10, 10]
    assert found[0]["cloud"] > 0 and (found[1]["cloud"], found[2]["cloud"]) == (None, None)
    assert [one["input"] for one in listed["models"]["demo*"]] == [Decimal("1.5"), Decimal("0.15")]
    assert listed["cloud"]["*"][0]["input"] is None


async def test_prices_set_concurrently_are_all_found(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run:
        put = {"models": {"other": {"input": 1}}}
        response = await run.http.put(f"{run.url}/api/admin/costs/pricing", json=put, headers=OPS)
        assert response.status == 200
        row = {"id": 0, "at": 0, "kind": "models", "pattern": "late", "currency": "USD", "input": 10**9}
        async with writer_of(run).database.writing() as connection:
            await connection.execute(insert(PRICES), row)
        listed = await get(run, "/api/admin/costs/pricing")
    assert {"other", "late"} < set(listed["models"])


def cached(row: dict[str, Any]) -> int:
    known = row["cached_tokens"] or 0
    return int((row["prompt_tokens"] - known) * 150 + known * 75)


async def test_the_last_known_prices_apply_while_the_database_is_down(start: Start, postgres: PostgresServer) -> None:
    if postgres.process is None:
        await postgres.start()
    url = await postgres.create("prices_away")
    async with start(config(url)) as run:
        postgres.kill()
        try:
            await chat(run)
            assert (await get(run, "/api/admin/costs/pricing", status=503))["error"]["code"] == "database_unavailable"
        finally:
            await postgres.start()
        (row,) = await written(run, 1)
        assert row["cost"] > 0


async def test_a_reload_while_the_database_is_down_keeps_the_prices(start: Start, postgres: PostgresServer) -> None:
    if postgres.process is None:
        await postgres.start()
    url = await postgres.create("reloaded_prices")
    async with start(config(url)) as run:
        put = {"models": {"demo*": {"input": 1000, "output": 0}}}
        response = await run.http.put(f"{run.url}/api/admin/costs/pricing", json=put, headers=OPS)
        assert response.status == 200
        postgres.kill()
        try:
            assert await run.server.reload()
            await chat(run)
        finally:
            await postgres.start()
        (row,) = await written(run, 1)
    assert row["cost"] == row["prompt_tokens"] * 10**6
