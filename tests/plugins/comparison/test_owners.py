"""Owners of comparisons, pages of lists, and deletion."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update

from plugins.comparison.retention import DAY, PAGE, Retention
from plugins.comparison.tables import JUDGEMENTS, RESULTS, ROUNDS
from proxy.errors import NotFound
from tests.conftest import Running, Start
from tests.plugins.comparison.asking import OPS, TWO, A, B, Json, api_of, asks, compare, config, models

PATH = "/api/comparisons"


async def rows(run: Running) -> list[int]:
    """The number of rows in each table."""
    from sqlalchemy import func, select

    async with api_of(run).store.database.reading() as connection:
        return [
            (await connection.execute(select(func.count()).select_from(table))).scalar_one()
            for table in (ROUNDS, RESULTS, JUDGEMENTS)
        ]


ROUTES: list[tuple[str, str, Json]] = [
    ("GET", "", {}),
    ("DELETE", "", {}),
    ("POST", "/rate", {"winner": "llama"}),
    ("POST", "/rate", {"model": "llama", "rating": "up"}),
    ("POST", "/judge", {"model": "judge"}),
]


async def test_other_callers_comparisons_are_not_found(start: Start, database_url: str) -> None:
    async with start(config(database_url), models()) as run:
        id = (await compare(run, judge={"model": "judge"}))["comparison_id"]
        own = (await compare(run, B))["comparison_id"]
        before = await asks(run, "GET", f"{PATH}/{id}")
        asked = len(run.ollama.seen)
        for who in (B, OPS):
            for method, path, body in ROUTES:
                error = (await asks(run, method, f"{PATH}/{id}{path}", who, 404, **body))["error"]
                assert (error["code"], error["param"]) == ("comparison_not_found", "id"), (method, path)
        assert len(run.ollama.seen) == asked and await asks(run, "GET", f"{PATH}/{id}") == before
        assert [one["comparison_id"] for one in (await asks(run, "GET", PATH, B))["data"]] == [own]
        assert (await asks(run, "GET", f"{PATH}?after={id}", B, 404))["error"]["param"] == "after"
        for name in ("ranking", "statistics"):
            assert (await asks(run, "GET", f"{PATH}/{name}?user=alice", B, 403))["error"]["code"]
            assert (await asks(run, "GET", f"{PATH}/{name}?by=judge" if name == "ranking" else f"{PATH}/{name}", B))[
                "user"
            ] == "bob"


async def test_users_see_their_own_figures_and_admins_all(start: Start, database_url: str) -> None:
    async with start(config(database_url), models()) as run:
        for who, winner in ((A, "llama"), (B, "mistral"), (B, "mistral")):
            id = (await compare(run, who))["comparison_id"]
            await asks(run, "POST", f"{PATH}/{id}/rate", who, winner=winner)
        id = (await compare(run))["comparison_id"]
        await asks(run, "POST", f"{PATH}/{id}/rate", model="llama", rating="up")
        firsts = {}
        for name, who, more in (("a", A, ""), ("b", B, ""), ("all", OPS, ""), ("ops on a", OPS, "?user=alice")):
            told = await asks(run, "GET", f"{PATH}/ranking{more}", who)
            firsts[name] = told["comparisons"], told["models"][0]["model"], told["user"]
        assert firsts == {
            "a": (1, "llama", "alice"), "b": (2, "mistral", "bob"), "all": (3, "mistral", None),
            "ops on a": (1, "llama", "alice"),
        }  # fmt: skip
        told = await asks(run, "GET", f"{PATH}/statistics")
        assert (told["comparisons"], told["votes"], [one["up"] for one in told["models"]]) == (2, 1, [1, 0])
        assert told["models"][0]["answers"] == 2 and told["models"][0]["duration"]["p50"] > 0
        assert (await asks(run, "GET", f"{PATH}/statistics", OPS))["comparisons"] == 4
        for wrong in ("days=0", "days=x", "by=luck", "what=1"):
            error = (await asks(run, "GET", f"{PATH}/ranking?{wrong}", status=400))["error"]
            assert error["param"] == wrong.partition("=")[0]
        old = update(ROUNDS).values(at=ROUNDS.c.at - 8 * DAY)
        async with api_of(run).store.database.writing() as connection:
            await connection.execute(old)
        assert (await asks(run, "GET", f"{PATH}/ranking?days=7", OPS))["models"] == []
        assert (await asks(run, "GET", f"{PATH}/ranking?days=9", OPS))["comparisons"] == 3


async def test_only_the_newest_comparisons_are_ranked(
    start: Start, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugins.comparison.figures.SOME", 2)
    async with start(config(f"sqlite:///{tmp_path}/x.db"), models()) as run:
        for _ in range(5):
            id = (await compare(run))["comparison_id"]
            await asks(run, "POST", f"{PATH}/{id}/rate", winner="tie")
        assert (await asks(run, "GET", f"{PATH}/ranking"))["comparisons"] == 5
        monkeypatch.setattr("plugins.comparison.figures.MOST", 3)
        ranking = await asks(run, "GET", f"{PATH}/ranking")
        assert ranking["comparisons"] == 3 and [one["rating"] for one in ranking["models"]] == [1000.0, 1000.0]


async def test_lists_are_paged(start: Start, database_url: str) -> None:
    async with start(config(database_url), models()) as run:
        ids = [(await compare(run, prompt=str(one)))["comparison_id"] for one in range(5)]
        for order, expected in (("desc", ids[::-1]), ("asc", ids)):
            found: list[str] = []
            after = ""
            while True:
                page = await asks(run, "GET", f"{PATH}?limit=2&order={order}{after}")
                found += [one["comparison_id"] for one in page["data"]]
                assert page["first_id"] == page["data"][0]["comparison_id"] and page["last_id"] == found[-1]
                if not page["has_more"]:
                    break
                after = f"&after={page['last_id']}"
            assert found == expected
        assert (await asks(run, "GET", f"{PATH}?limit=101", status=400))["error"]["param"] == "limit"
        assert (await asks(run, "GET", f"{PATH}?after=x%00", status=400))["error"]["param"] == "after"
        assert (await asks(run, "GET", PATH, B))["data"] == []


async def test_lists_show_the_beginning_of_the_prompt(start: Start, database_url: str) -> None:
    async with start(config(database_url), models()) as run:
        long = "ö" * 3000
        id = (await compare(run, prompt=long))["comparison_id"]
        assert [one["prompt"] for one in (await asks(run, "GET", PATH))["data"]] == [long[:2000]]
        kept = await asks(run, "GET", f"{PATH}/{id}")
        assert kept["prompt"] == kept["messages"][0]["content"] == long


async def test_all_comparisons_of_a_caller_are_exported(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db"), models()) as run:
        ids = [(await compare(run))["comparison_id"] for _ in range(PAGE + 1)]
        told = (await asks(run, "GET", "/api/me/data"))["data"]["comparisons"]
        assert [one["comparison_id"] for one in told] == ids


async def test_a_comparison_deleted_during_an_export_does_not_end_it(start: Start, database_url: str) -> None:
    async with start(config(database_url), models()) as run:
        ids = [(await compare(run))["comparison_id"] for _ in range(PAGE + 1)]
        store = api_of(run).store
        told = []
        async for one in Retention(store, None).export("alice"):
            told.append(one)
            if len(told) == PAGE:
                await store.drop("alice", ids[PAGE - 1])
        assert [one["comparison_id"] for one in told if isinstance(one, dict)] == ids


async def test_rating_a_deleted_comparison_never_rates_another(start: Start, database_url: str) -> None:
    """SQLite reuses the ID of the row deleted last."""
    async with start(config(database_url), models()) as run:
        store, id = api_of(run).store, (await compare(run))["comparison_id"]
        mine = await store.one("alice", id)
        await asks(run, "DELETE", f"{PATH}/{id}")
        theirs = (await compare(run, B))["comparison_id"]
        with pytest.raises(NotFound):
            await store.rate(mine, 0, -1)
        assert [one.rating for one in (await store.one("bob", theirs)).results] == [0, 0]


async def test_deleted_and_expired_comparisons_and_those_of_deleted_callers_are_gone(
    start: Start, database_url: str
) -> None:
    async with start(config(database_url), models()) as run:
        ids = [(await compare(run, who, judge={"model": "judge"}))["comparison_id"] for who in (A, A, A, B)]
        assert await rows(run) == [4, 8, 4]
        assert await asks(run, "DELETE", f"{PATH}/{ids[0]}") == {"comparison_id": ids[0], "deleted": True}
        await asks(run, "DELETE", f"{PATH}/{ids[0]}", status=404)
        assert await rows(run) == [3, 6, 3]
        store = api_of(run).store
        async with store.database.writing() as connection:
            await connection.execute(update(ROUNDS).where(ROUNDS.c.id == ids[1]).values(at=store.now() - 8 * DAY))
        await Retention(store, None).tidy()
        assert (await rows(run))[0] == 3
        await Retention(store, 7).tidy()
        assert await rows(run) == [2, 4, 2]
        told = (await asks(run, "GET", "/api/me/data"))["data"]["comparisons"]
        assert [one["comparison_id"] for one in told] == [ids[2]]
        assert told[0]["results"][0]["response"].startswith("I am llama") and told[0]["messages"][0]["content"] == "hi"
        assert (await asks(run, "DELETE", "/api/me/data"))["deleted"] == {"comparisons": 1}
        assert await rows(run) == [1, 2, 1] and (await asks(run, "GET", f"{PATH}/{ids[3]}", B))["results"]
        assert [one["model"] for one in (await asks(run, "GET", PATH, B))["data"][0]["results"]] == TWO
