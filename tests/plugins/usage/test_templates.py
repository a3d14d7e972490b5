"""Statistics by prompt template, also in databases from before this feature."""

from __future__ import annotations

import shutil
from pathlib import Path

from plugins.usage.tables import CALLS, FEATURE, SUMS
from plugins.usage.writer import Batch, Writer
from proxy.host import Clock
from proxy.sql.database import Database
from proxy.sql.feature import Feature
from tests.conftest import Start
from tests.plugins.usage.asking import OPS, A, B, chat, config, get, rows, written
from tests.plugins.usage.test_writer import row


async def test_databases_from_before_this_feature_keep_counting(new_database_url: str, tmp_path: Path) -> None:
    (old := tmp_path / "old").mkdir()
    shutil.copy(FEATURE.migrations / "one.py", old)
    database = Database(new_database_url, 3, 10)
    await database.migrate(Feature("usage", old))
    async with database.writing() as connection:
        columns = "id, own, start, caller, key_id, route, model, upstream, error, currency, calls"
        values = "'x', 1, 1699920000000000, 'ann', '', 'chat', 'demo:latest', 'local', '', '', 3"
        await connection.exec_driver_sql(f"INSERT INTO usage_days ({columns}) VALUES ({values})")
    await database.aclose()
    database = Database(new_database_url, 3, 10)
    await database.migrate(FEATURE)
    await Writer(database, Clock()).put(Batch([row(1), row(2, template="summarize@1")]))
    found = [one for one in await rows(database, SUMS[86_400]) if one["own"]]
    assert sorted((one["template"], one["calls"]) for one in found) == [("", 1), ("", 3), ("summarize@1", 1)]
    assert sorted(one["template"] for one in await rows(database, CALLS)) == ["", "summarize@1"]
    await database.aclose()


async def test_figures_are_shown_by_template(start: Start, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/r.db"
    async with start(config(url, chain="usage, templates")) as run:
        filled = {"name": "summarize", "variables": {"text": "x"}}
        for who in (A, A, B):
            await chat(run, who, template=filled, messages=[])
        await chat(run, A, template={**filled, "name": "shorten"}, messages=[])
        await chat(run, A, template={**filled, "name": "shorten"}, messages=[], model="nobody-has-it")
        await chat(run, A)
        found = await written(run, 6)
        assert {one["template"] for one in found} == {"summarize@1", "shorten@1", ""}
        for who, told in (
            (OPS, [(None, 1, 0), ("shorten@1", 2, 1), ("summarize@1", 3, 0)]),
            (B, [("summarize@1", 1, 0)]),
        ):
            by = (await get(run, "/api/metrics/templates", who))["templates"]
            assert [(one["template"], one["total_requests"], one["errors"]) for one in by] == told
            costs = (await get(run, "/api/costs/breakdown?period=day&by=template", who))["rows"]
            assert [(one["template"], one["total_requests"]) for one in costs] == [one[:2] for one in told]
        assert costs[0]["total_cost"] > 0
        assert "template" in (await (await run.http.get(f"{run.url}/api/metrics/export.csv", headers=OPS)).text())
