"""Budgets of tokens and money: they are enforced and survive restarts, with SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.limits import ledger
from plugins.limits.ledger import Ledger
from plugins.limits.tables import FEATURE, SPENT
from proxy import build
from proxy.announcements import CallEnded, Cost
from proxy.host import Host
from proxy.server import services
from proxy.sql.database import Database, DatabaseAway
from proxy.upstreams.demo import Fault, Simulator
from tests.conftest import Running, Start
from tests.plugins.limits.asking import chat, limits, limits_shown, statuses, until_used, used
from tests.servers import PostgresServer, RedisServer, redis_server
from tests.whole.asking import user
from tests.whole.commands import served

COST = 100_000_000
"""The price of a token in these tests, in billionths."""
PROMPT = 20
"""The most tokens by which a prompt exceeds the estimate from its characters."""


def priced(ended: CallEnded) -> Cost | None:
    if ended.model.startswith("demo-thinking"):
        return None
    tokens = (ended.prompt_tokens or 0) + (ended.completion_tokens or 0)
    return Cost("EUR", 0 if ended.cache == "hit" else tokens * COST)


@pytest.fixture
def prices(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Callable[..., Host] = Host
    monkeypatch.setattr(build, "Host", lambda *given, **named: made(*given, **{**named, "price": priced}))


def config(url: str, *rules: str, **more: Any) -> str:
    return f"database: {{url: '{url}'}}\n" + limits(*rules, **more)


async def spend(run: Running, **body: Any) -> int:
    status, told, _ = await chat(run, **body)
    assert status == 200, told
    return int(told["usage"]["total_tokens"])


async def test_a_budget_survives_a_restart(start: Start, database_url: str) -> None:
    text = config(database_url, "{tokens_per_day: 100000, tokens_per_month: 2000000}")
    async with start(text) as run:
        tokens = await spend(run) + await spend(run)
    async with start(text) as run:
        assert await used(run, "tokens_per_day") == await used(run, "tokens_per_month") == tokens
        tokens += await spend(run)
        assert await used(run, "tokens_per_day") == tokens


async def test_a_call_beyond_the_budget_is_refused_and_not_retried(start: Start, database_url: str) -> None:
    text = config(database_url, "{tokens_per_day: 40}", "{per: model, tokens_per_month: 100000}")
    async with start(text) as run:
        while (answer := await chat(run, max_tokens=10))[0] == 200:
            pass
        status, body, headers = answer
        assert status == 429 and body["error"]["code"] == "insufficient_quota"
        assert "The budget of 40 tokens per day for caller 'anonymous'" in body["error"]["message"]
        assert "T00:00:00Z" in body["error"]["message"] and headers["x-should-retry"] == "false"
        assert 0 < int(headers["retry-after"]) <= 86_400
        assert 30 < await used(run, "tokens_per_day") <= 40 + PROMPT
    async with start(text) as run:
        assert (await chat(run, max_tokens=20))[0] == 429


async def test_of_several_exhausted_limits_the_error_names_the_longest_lasting(start: Start, database_url: str) -> None:
    rules = (
        "{requests_per_minute: 1, tokens_per_minute: 10, at_once: 1, tokens_per_day: 10}",
        "{per: all, tokens_per_month: 10}",
    )
    async with start(config(database_url, *rules)) as run:
        await spend(run)
        status, body, headers = await chat(run)
    assert status == 429 and body["error"]["code"] == "insufficient_quota"
    assert "tokens per month" in body["error"]["message"]
    assert headers["x-should-retry"] == "false" and headers["x-ratelimit-remaining-requests"] == "0"


async def test_money_is_counted_exactly_and_only_for_models_with_a_price(
    start: Start, database_url: str, prices: None
) -> None:
    text = config(database_url, "{money_per_day: 150, money_per_month: 10000}", chain="limits, cache")
    async with start(text) as run:
        tokens = await spend(run, seed=1)
        await spend(run, seed=1)  # a cached answer costs nothing
        await spend(run, model="demo-thinking", max_tokens=10)
        shown = f"{tokens / 10:g}"
        assert await used(run, "money_per_day") == await used(run, "money_per_month") == shown
        status, body, _ = await chat(run, max_tokens=50_000, seed=2)
        assert status == 429 and "The budget of 150 per day" in body["error"]["message"]
    async with start(text) as run:
        assert await used(run, "money_per_day") == shown


async def test_a_model_without_a_price_can_be_called_when_the_budget_is_used_up(
    start: Start, database_url: str, prices: None
) -> None:
    async with start(config(database_url, "{money_per_day: 1}")) as run:
        await spend(run, max_tokens=3)
        assert float(await used(run, "money_per_day")) > 1
        assert (await chat(run, max_tokens=3))[0] == 429
        await spend(run, model="demo-thinking", max_tokens=3)


async def test_the_maximum_cost_of_running_calls_is_reserved(start: Start, database_url: str, prices: None) -> None:
    async with start(config(database_url, "{money_per_day: 3}")) as run:
        answers = await asyncio.gather(*(chat(run, max_tokens=9, messages=user("hi")) for _ in range(10)))
        assert [status for status, _, _ in answers].count(200) == 3


@pytest.mark.parametrize("where", ["here", "redis"])
async def test_a_reserved_budget_does_not_count_as_used_up(start: Start, tmp_path: Path, where: str) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    stall = Fault("stall", times=1, until=(go := asyncio.Event()))
    async with AsyncExitStack() as stack:
        store = (await stack.enter_async_context(redis_server(tmp_path))).url if where == "redis" else ""
        text = config(url, "{tokens_per_day: 1000}", store=store)
        run = await stack.enter_async_context(start(text, Simulator(faults=[stall])))
        first = asyncio.ensure_future(chat(run, stream=True, max_tokens=900))
        await until_used(run, "tokens_per_day", 901)
        status, body, headers = await chat(run, max_tokens=500)
        assert (status, body["error"]["code"], headers["retry-after"]) == (429, "too_many_at_once", "1")
        assert "x-should-retry" not in headers and "together with those under way" in body["error"]["message"]
        go.set()
        assert (await first)[0] == 200
        async with asyncio.timeout(30):
            while (await chat(run, max_tokens=500))[0] != 200:
                pass


async def test_two_servers_with_one_database_share_a_budget(start: Start, database_url: str, tmp_path: Path) -> None:
    async with redis_server(tmp_path) as server:
        text = config(database_url, "{tokens_per_day: 1000000}", store=server.url)
        async with start(text) as one, start(text) as other:
            tokens = sum(await asyncio.gather(*(spend((one, other)[number % 2]) for number in range(20))))
            await until_used(one, "tokens_per_day", tokens)
            assert await used(other, "tokens_per_day") == tokens
    async with start(config(database_url, "{tokens_per_day: 1000000}")) as run:
        assert await used(run, "tokens_per_day") == tokens


async def test_an_emptied_redis_is_given_what_was_spent(start: Start, database_url: str, tmp_path: Path) -> None:
    async with redis_server(tmp_path) as server:
        text = config(database_url, "{tokens_per_day: 1000000}", store=server.url)
        async with start(text) as run:
            tokens = await spend(run) + await spend(run)
            await restart_empty(server)
            tokens += await spend(run)
            await until_used(run, "tokens_per_day", tokens)


async def test_while_redis_is_down_budgets_are_enforced_from_the_records(
    start: Start, database_url: str, tmp_path: Path
) -> None:
    async with redis_server(tmp_path) as server:
        text = config(database_url, "{tokens_per_day: 60}", store=server.url)
        async with start(text) as run, start(text) as other:
            assert (await statuses(run, 10, max_tokens=10))[-1] == 429
            await until_written(database_url, await used(run, "tokens_per_day"))
            server.kill()
            assert await statuses(run, 1, max_tokens=40) + await statuses(other, 1, max_tokens=40) == [429, 429]


async def restart_empty(server: RedisServer) -> None:
    server.kill()
    await server.start()


async def until_written(url: str, spent: int) -> None:
    """Wait until this much is recorded in the database."""
    database = Database(url, 1, 10)
    try:
        async with asyncio.timeout(10):
            while await written(database) != spent:  # noqa: ASYNC110  (there is no event)
                await asyncio.sleep(0.02)
    finally:
        await database.aclose()


async def written(database: Database) -> int:
    async with database.reading() as connection:
        whole = select(func.coalesce(func.sum(SPENT.c.spent), 0)).where(SPENT.c.counter.not_like("process %"))
        return int((await connection.execute(whole)).scalar_one())


async def test_a_commit_without_confirmation_counts_once(database_url: str) -> None:
    async with services() as lent:
        database = Database(database_url, 2, 10)
        await database.migrate(FEATURE)
        book, whole = Ledger(lambda: database, lent), database.writing

        @asynccontextmanager
        async def unconfirmed() -> AsyncIterator[AsyncConnection]:
            async with whole() as connection:
                yield connection
            raise DatabaseAway("gone")

        def away() -> Any:
            raise DatabaseAway("gone")

        counter = "caller|ann|tokens_per_day|2020-01-01"
        book.add(counter, 5)
        setattr(database, "writing", away)  # noqa: B010
        assert await book.flush() == {} and await book.spent([counter]) == {counter: 5}
        setattr(database, "writing", unconfirmed)  # noqa: B010  (the type checker forbids plain assignment)
        assert await book.flush() == {}
        book.add(counter, 2)
        assert await book.spent([counter]) == {counter: 7}
        setattr(database, "writing", whole)  # noqa: B010
        assert await book.flush() == {counter: 7} and book.pending == {}
        assert await written(database) == 7
        book.add(counter, 1)
        assert await book.flush() == {counter: 8}
        await database.aclose()


async def test_expired_budgets_are_deleted(tmp_path: Path) -> None:
    async with services() as lent:
        database = Database(f"sqlite:///{tmp_path / 'records.db'}", 2, 10)
        await database.migrate(FEATURE)
        book = Ledger(lambda: database, lent)
        for year, amount in (("2020", 5), ("9999", 3)):
            book.add(f"caller|ann|tokens_per_day|{year}-01-01", amount)
        await book.flush()
        await book.sweep()
        assert await written(database) == 3
        await database.aclose()


async def test_a_killed_process_loses_at_most_a_second_of_spending(start: Start, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'records.db'}"
    text = config(url, "{tokens_per_day: 1000000}")
    path = tmp_path / "proxy.yaml"
    path.write_text(text + "upstreams: {local: {demo: {}}}\nlisten: {port: 0}\n")
    async with served("serve", "--config", str(path)) as serving, aiohttp.ClientSession() as http:

        async def one() -> int:
            asked = {"model": "demo", "messages": user("hi")}
            async with http.post(f"{serving.url}/v1/chat/completions", json=asked) as response:
                return int((await response.json())["usage"]["total_tokens"])

        tokens = sum([await one() for _ in range(5)])
        await until_written(url, tokens)
        late = await one()
        serving.process.kill()
        await serving.process.wait()
    async with start(text) as run:
        assert tokens <= await used(run, "tokens_per_day") <= tokens + late


async def test_while_the_database_is_down_calls_are_answered_and_counted_later(
    start: Start, postgres: PostgresServer
) -> None:
    if postgres.process is None:
        await postgres.start()
    url = await postgres.create(f"away_{uuid.uuid4().hex}")
    text = config(url, "{tokens_per_day: 1000000}", "{per: [caller, model], tokens_per_day: 1000000}")
    async with start(text) as run:
        tokens = await spend(run)
        postgres.kill()
        try:
            tokens += sum(await asyncio.gather(*(spend(run) for _ in range(5))))
            await spend(run, model="demo-thinking")  # its counter's initial value is unknown
        finally:
            await postgres.start()
        before = {one["id"]: one["limits"] for one in await limits_shown(run)}
        assert len(before) == 3 and before["caller|anonymous"]["tokens_per_day"]["used"] > tokens
    async with start(text) as run:
        assert await used(run, "tokens_per_day") == before["caller|anonymous"]["tokens_per_day"]["used"]


async def test_a_reload_while_the_database_is_down_loses_nothing(start: Start, postgres: PostgresServer) -> None:
    if postgres.process is None:
        await postgres.start()
    url = await postgres.create(f"reloaded_{uuid.uuid4().hex}")
    text = config(url, "{tokens_per_day: 1000000}")
    async with start(text) as run:
        tokens = await spend(run)
        await until_written(url, tokens)
        postgres.kill()
        try:
            tokens += await spend(run)
            assert await run.server.reload()
            async with asyncio.timeout(20):
                while run.server.live.retiring:  # noqa: ASYNC110  (there is no event)
                    await asyncio.sleep(0.01)
        finally:
            await postgres.start()
        await until_written(url, tokens)


async def test_budgets_removed_by_a_reload_are_written_once_the_database_is_back(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: Database) -> Any:
        raise DatabaseAway("gone")

    url = f"sqlite:///{tmp_path / 'records.db'}"
    monkeypatch.setattr(ledger, "REST", 0.01)
    async with start(config(url, "{tokens_per_day: 1000000}")) as run:
        whole = Database.writing
        monkeypatch.setattr(Database, "writing", gone)
        tokens = await spend(run)
        run.configure("chains: {chat: []}")
        assert await run.server.reload()
        async with asyncio.timeout(20):
            while run.server.live.retiring:  # noqa: ASYNC110  (there is no event)
                await asyncio.sleep(0.01)
        monkeypatch.setattr(Database, "writing", whole)
        await until_written(url, tokens)
        assert not run.server.services.state["limits ledger"].pending


async def test_a_server_that_stops_without_its_database_logs_what_was_not_written(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(self: Database) -> Any:
        raise DatabaseAway("gone")

    async with start(config(f"sqlite:///{tmp_path / 'records.db'}", "{tokens_per_day: 1000000}")) as run:
        monkeypatch.setattr(Database, "writing", gone)
        await spend(run)
    assert "the spending of 1 budgets was not recorded before the server stopped" in caplog.text


async def test_if_configured_calls_are_refused_while_budgets_are_unknown(
    start: Start, postgres: PostgresServer
) -> None:
    if postgres.process is None:
        await postgres.start()
    url = await postgres.create(f"refused_{uuid.uuid4().hex}")
    async with start(config(url, "{per: model, tokens_per_day: 1000000}", more="away: refuse, ")) as run:
        postgres.kill()
        try:
            async with asyncio.timeout(10):
                for number in count():  # PostgreSQL's child processes may answer for a moment
                    status, body, _ = await chat(run, model=f"nobody-{number}")
                    if status != 404:
                        break
            assert (status, body["error"]["code"]) == (503, "store_unavailable")
        finally:
            await postgres.start()


async def test_without_budgets_no_database_is_opened(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "never.db"
    async with start(config(f"sqlite:///{path}", "{requests_per_minute: 5}")) as run:
        assert (await chat(run))[0] == 200
    assert not path.exists()
