"""Users and keys in the database: created, used, restricted and revoked through a running server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from proxy.accounts import uses, verified
from proxy.cli import main
from proxy.errors import ConfigError
from proxy.sql.database import Database, DatabaseAway
from proxy.types import Caller
from proxy.upstreams.demo import Fault, Simulator
from tests.conftest import ASK, BARE, HI, Running, Start
from tests.servers import PostgresServer
from tests.whole.asking import error_of, until_shared

ROOT = "canary-root-0123456789"


@pytest.fixture(autouse=True)
def _root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMAPY_ADMIN_KEY", ROOT)


def yaml(url: str, more: str = "") -> str:
    chains = "" if "chains:" in more else f"{BARE}\n"
    return f"{chains}accounts: {{}}\ndatabase: {{url: '{url}'}}\n{more}"


@pytest.fixture
def sqlite_url(tmp_path: Any) -> str:
    """The URL of an SQLite database, for tests that do not depend on the kind of database."""
    return f"sqlite:///{tmp_path / 'records.db'}"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


class Admin:
    """A client of a running server's administration API."""

    def __init__(self, run: Running, key: str = ROOT) -> None:
        self.run = run
        self.key = key

    async def ask(self, method: str, path: str, body: Any = None) -> aiohttp.ClientResponse:
        sent = {} if body is None else {"json": body}
        return await self.run.http.request(method, f"{self.run.url}/api/admin/{path}", headers=bearer(self.key), **sent)

    async def json(self, method: str, path: str, body: Any = None) -> Any:
        response = await self.ask(method, path, body)
        assert response.status == 200, await response.text()
        return await response.json()

    async def key_for(self, user: str, **more: Any) -> Any:
        """A new key; its user is created if missing."""
        await self.ask("POST", "users", {"name": user})
        return await self.json("POST", "keys", {"user": user, **more})


async def chat(run: Running, key: str, **body: Any) -> aiohttp.ClientResponse:
    return await run.http.post(f"{run.url}/v1/chat/completions", json={**ASK, **body}, headers=bearer(key))


async def status(run: Running, key: str) -> int:
    return (await run.http.get(f"{run.url}/v1/models", headers=bearer(key))).status


async def test_a_key_is_created_shown_once_used_and_revoked(start: Start, database_url: str) -> None:
    async with start(yaml(database_url)) as run:
        admin = Admin(run)
        made = await admin.key_for("alice", name="laptop", metadata={"team": "blue"}, expires_in=3600)
        key = made.pop("key")
        assert made["expires_at"] - made["created_at"] in (3600, 3599) and made["prefix"] == key[:17]
        async with run.client(api_key=key) as client:
            assert (await client.chat.completions.create(**ASK)).choices
        listed = await admin.json("GET", "keys")
        assert listed["data"] == [made] == [await admin.json("GET", f"keys/{made['id']}")]
        assert listed["has_more"] is False and key not in str(listed)
        revoked = await admin.json("DELETE", f"keys/{made['id']}")
        assert revoked["revoked_at"] is not None
        error = await error_of(await chat(run, key), 401)
        assert error["code"] == "invalid_api_key" and "was revoked" in error["message"]


async def test_users_are_created_changed_and_deleted(start: Start, database_url: str) -> None:
    async with start(yaml(database_url)) as run:
        admin = Admin(run)
        user = await admin.json("POST", "users", {"name": "bob@example.com", "metadata": {"a": "b"}})
        key = (await admin.json("POST", "keys", {"user": "bob@example.com"}))["key"]
        assert await status(run, key) == 200
        assert (await admin.json("PUT", f"users/{user['id']}", {"disabled": True}))["disabled_at"] is not None
        assert await status(run, key) == 401
        changed = await admin.json("PUT", "users/bob@example.com", {"disabled": False, "role": "admin"})
        assert (changed["role"], changed["disabled_at"], changed["metadata"]) == ("admin", None, {"a": "b"})
        assert await status(run, key) == 200
        boss = (await admin.json("POST", "keys", {"user": user["id"], "role": "admin"}))["key"]
        assert (await Admin(run, boss).json("GET", "users?limit=1"))["data"][0] == changed
        assert (await Admin(run, key).ask("GET", "users")).status == 403
        assert (await admin.json("DELETE", f"users/{user['id']}"))["deleted"] is True
        assert await status(run, key) == await status(run, boss) == 401
        assert (await error_of(await admin.ask("GET", f"users/{user['id']}"), 404))["code"] == "user_not_found"


async def test_lists_are_paged(start: Start, sqlite_url: str) -> None:
    async with start(yaml(sqlite_url)) as run:
        admin = Admin(run)
        made = [(await admin.key_for("alice"))["id"] for _ in range(5)]
        first = await admin.json("GET", "keys?limit=3&user=alice")
        rest = await admin.json("GET", f"keys?limit=3&after={first['last_id']}")
        assert sorted(one["id"] for one in first["data"] + rest["data"]) == sorted(made)
        assert (first["has_more"], rest["has_more"]) == (True, False)


async def test_unusual_characters_never_cause_a_server_error(start: Start, database_url: str) -> None:
    odd = {"a\0b": "\0\u2028\U0001f600"}
    async with start(yaml(database_url)) as run:
        admin = Admin(run)
        made = await admin.key_for("alice", name="\U0001f600 é", metadata=odd, models=["\0[", "[a", "demo"])
        assert (await admin.json("GET", f"keys/{made['id']}"))["metadata"] == odd
        assert await status(run, made["key"]) == 200 and (await chat(run, made["key"])).status == 200
        for path in ("keys/%00", "users/%00", "keys/%FF", "users/a%2Fb", f"keys/{'x' * 500}"):
            for method in ("GET", "DELETE"):
                assert (await admin.ask(method, path)).status == 404, path


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", "keys", {}, "user"),
        ("POST", "keys", {"user": "a", "colour": 1}, "colour"),
        ("POST", "keys", {"user": "a", "models": []}, "models"),
        ("POST", "keys", {"user": "a", "models": [""]}, "models[0]"),
        ("POST", "keys", {"user": "a", "routes": ["internal"]}, "routes[0]"),
        ("POST", "keys", {"user": "a", "role": "public"}, "role"),
        ("POST", "keys", {"user": "a", "expires_in": 0}, "expires_in"),
        ("POST", "keys", {"user": "a", "expires_at": 1}, "expires_at"),
        ("POST", "keys", {"user": "a", "expires_at": 10**30}, "expires_at"),
        ("POST", "keys", {"user": "a", "expires_at": 2 * 10**9, "expires_in": 5}, None),
        ("POST", "keys", {"user": "a", "metadata": {"x": 1}}, "metadata.x"),
        ("POST", "keys", {"user": "a", "name": 129 * "x"}, "name"),
        ("POST", "users", {"name": "a b"}, "name"),
        ("POST", "users", {"name": "user_1"}, "name"),
        ("POST", "users", {"name": "anonymous"}, "name"),
        ("POST", "users", {"name": "config"}, "name"),
        ("POST", "keys", {"user": "a", "name": "a\0b"}, "name"),
        ("POST", "keys", {"user": "a\0b"}, "user"),
        ("GET", "keys?after=%00", None, "after"),
        ("PUT", "users/a", {"name": "b"}, "name"),
        ("GET", "keys?limit=0", None, "limit"),
        ("GET", "keys?limit=many", None, "limit"),
        ("GET", "keys?after=key_x", None, "after"),
        ("GET", "users?user=a", None, "user"),
    ],
)
async def test_an_invalid_field_is_named_in_the_error(
    start: Start, sqlite_url: str, method: str, path: str, body: Any, field: str | None
) -> None:
    async with start(yaml(sqlite_url, "keys: {config: a-key}\n")) as run:
        error = await error_of(await Admin(run).ask(method, path, body), 400)
        assert error["param"] == field


async def test_two_keys_of_one_user_are_one_caller(
    start: Start, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = yaml(sqlite_url, "plugins: {cache: {}}\nchains: {chat: [cache]}\n")
    with caplog.at_level(logging.INFO, "gemmapy.requests"):
        async with start(text) as run:
            keys = [(await Admin(run).key_for("alice"))["key"] for _ in range(2)]
            outcomes = [(await chat(run, key)).headers["x-gemmapy-cache"] for key in keys]
    assert outcomes == ["miss", "hit"]
    told = [record.told for record in caplog.records if hasattr(record, "told")]
    assert [one["caller"] for one in told if one["path"] == "/v1/chat/completions"] == ["alice", "alice"]


# --- what a key gives access to ----------------------------------------------------------------------

ALIASES = "models: {gpt-4o: {alias: demo-thinking}, tiny: {alias: demo}}\n"


@pytest.mark.parametrize(
    ("patterns", "name", "allowed"),
    [
        (["demo"], "demo", True),
        (["demo:latest"], "demo", True),
        (["DEMO"], "demo:latest", True),
        (["demo"], "demo-vision", False),
        (["demo*"], "demo-vision", True),
        (["demo-v?sion", "x"], "demo-vision", True),
        (["gpt-4o"], "gpt-4o", True),
        (["gpt-4o"], "demo-thinking", False),
        (["demo-thinking"], "gpt-4o", True),
        (["demo"], "gpt-4o", False),
        (["demo"], "nowhere", False),
    ],
)
async def test_a_key_gives_access_only_to_the_models_it_names(
    start: Start, sqlite_url: str, patterns: list[str], name: str, allowed: bool
) -> None:
    async with start(yaml(sqlite_url, ALIASES)) as run:
        key = (await Admin(run).key_for("alice", models=patterns))["key"]
        ours = bearer(key)
        native = {"model": name, "messages": HI, "stream": False}
        answers = [
            await chat(run, key, model=name),
            await run.http.post(f"{run.url}/api/chat", json=native, headers=ours),
            await run.http.post(f"{run.url}/v1/completions", json={"model": name, "prompt": "a"}, headers=ours),
        ]
        assert [one.status for one in answers] == [200 if allowed else 403] * 3
        if not allowed:
            assert (await error_of(answers[0], 403))["code"] == "model_not_allowed"
        streamed = await (await chat(run, key, model=name, stream=True)).text()
        assert ("[DONE]" in streamed) is allowed
        shown = await run.http.get(f"{run.url}/v1/models/{name}", headers=ours)
        native_shown = await run.http.post(f"{run.url}/api/show", json={"model": name}, headers=ours)
        assert shown.status == native_shown.status == (200 if allowed else 404)


async def test_model_lists_show_only_the_models_that_a_key_may_use(start: Start, sqlite_url: str) -> None:
    async with start(yaml(sqlite_url, ALIASES)) as run:
        key = (await Admin(run).key_for("alice", models=["demo", "gpt-*"]))["key"]
        assert (await chat(run, ROOT)).status == (await chat(run, ROOT, model="demo-vision")).status == 200

        async def names(path: str, inside: str, by: str) -> set[str]:
            told = await (await run.http.get(run.url + path, headers=bearer(key))).json()
            return {one[by].removesuffix(":latest") for one in told[inside]}

        assert await names("/v1/models", "data", "id") == {"demo", "tiny", "gpt-4o"}
        assert await names("/api/tags", "models", "name") == {"demo", "tiny", "gpt-4o"}
        assert await names("/api/ps", "models", "name") == {"demo"}


async def test_a_suggested_model_name_never_reveals_a_forbidden_model(start: Start, sqlite_url: str) -> None:
    async with start(yaml(sqlite_url)) as run:
        key = (await Admin(run).key_for("alice", models=["demo-vison", "demo"]))["key"]
        assert "demo-vision" not in (await error_of(await chat(run, key, model="demo-vison"), 404))["message"]
        assert "demo-vision" in (await error_of(await chat(run, ROOT, model="demo-vison"), 404))["message"]


async def test_a_key_gives_access_only_to_the_routes_it_names_in_every_dialect(start: Start, sqlite_url: str) -> None:
    asks: Mapping[str, tuple[str, dict[str, Any]]] = {
        "/v1/chat/completions": ("chat", ASK),
        "/api/chat": ("chat", {"model": "demo", "messages": HI, "stream": False}),
        "/v1/completions": ("completions", {"model": "demo", "prompt": "a"}),
        "/api/generate": ("completions", {"model": "demo", "prompt": "a", "stream": False}),
        "/v1/embeddings": ("embeddings", {"model": "demo-embed", "input": "a"}),
        "/api/embed": ("embeddings", {"model": "demo-embed", "input": "a"}),
        "/api/embeddings": ("embeddings", {"model": "demo-embed", "prompt": "a"}),
    }
    async with start(yaml(sqlite_url, "keys: {config: {key: yaml-key, routes: [embeddings]}}\n")) as run:
        made = (await Admin(run).key_for("alice", routes=["chat"]))["key"]
        for key, opened in ((made, "chat"), ("yaml-key", "embeddings")):
            for path, (route, body) in asks.items():
                response = await run.http.post(run.url + path, json=body, headers=bearer(key))
                assert response.status == (200 if route == opened else 403), path
                if route != opened and path.startswith("/v1"):
                    assert (await error_of(response, 403))["code"] == "route_not_allowed"


@pytest.mark.parametrize(
    ("opened", "code"),
    [({"routes": ["embeddings"]}, "route_not_allowed"), ({"models": ["demo-embed"]}, "model_not_allowed")],
)
async def test_access_is_checked_before_an_image_url(
    start: Start, sqlite_url: str, opened: dict[str, Any], code: str
) -> None:
    url = "https://pictures.example/a.png"
    link = {"type": "image_url", "image_url": {"url": url}}
    linked = {"role": "user", "content": [{"type": "input_image", "image_url": url}]}
    async with start(yaml(sqlite_url)) as run:
        key = (await Admin(run).key_for("alice", **opened))["key"]
        response = await chat(run, key, model="demo-vision", messages=[{"role": "user", "content": [link]}])
        assert (await error_of(response, 403))["code"] == code
        body = {"model": "demo-vision", "input": [linked]}
        response = await run.http.post(f"{run.url}/v1/responses", json=body, headers=bearer(key))
        assert (await error_of(response, 403))["code"] == code


async def test_the_cache_never_answers_for_a_model_that_the_key_may_not_use(start: Start, sqlite_url: str) -> None:
    more = "plugins: {cache: {}, turn: {use: 'tests.whole.rigged:Turned'}}\nchains: {chat: [turn, cache]}\n" + ALIASES
    async with start(yaml(sqlite_url, more)) as run:
        wide = (await Admin(run).key_for("alice"))["key"]
        narrow = (await Admin(run).key_for("alice", models=["demo"]))["key"]
        for model in ("demo-thinking", "gpt-4o"):
            assert (await chat(run, wide, model=model)).status == 200
            assert (await chat(run, wide, model=model)).headers["x-gemmapy-cache"] == "hit"
            for stream in (False, True):
                refused = await chat(run, narrow, model=model, stream=stream)
                assert (await error_of(refused, 403))["code"] == "model_not_allowed"
        turned = {"messages": [{"role": "user", "content": "turn to demo-thinking"}]}
        assert (await chat(run, wide, **turned)).status == (await chat(run, wide, **turned)).status == 200
        assert (await error_of(await chat(run, narrow, **turned), 403))["code"] == "model_not_allowed"
        assert (await chat(run, wide)).status == 200
        assert (await chat(run, narrow)).headers["x-gemmapy-cache"] == "hit"


async def test_a_fallback_never_uses_a_model_that_the_key_may_not_use(start: Start, sqlite_url: str) -> None:
    more = "plugins: {fallback: {default: [demo-thinking], on: [model_not_found]}}\nchains: {chat: [fallback]}\n"
    async with start(yaml(sqlite_url, more)) as run:
        narrow = (await Admin(run).key_for("alice", models=["gone*"]))["key"]
        assert (await chat(run, ROOT, model="gone")).headers["x-gemmapy-model"].startswith("demo-thinking")
        assert (await error_of(await chat(run, narrow, model="gone"), 404))["code"] == "model_not_found"


async def test_a_key_never_shares_a_generation_that_may_fall_back_to_a_forbidden_model(
    start: Start, sqlite_url: str
) -> None:
    faults = [Fault("status"), Fault("stall", until=(go := asyncio.Event()))]
    more = "plugins: {cache: {}, fallback: {default: [demo-thinking]}}\nchains: {chat: [cache, fallback]}\n"
    async with start(yaml(sqlite_url, more), Simulator(faults=faults)) as run:
        wide, narrow = [(await Admin(run).key_for("alice", **of))["key"] for of in ({}, {"models": ["demo"]})]
        first = asyncio.ensure_future(chat(run, wide))
        await run.ollama.until(lambda: not run.ollama.faults)
        other = asyncio.ensure_future(chat(run, narrow))
        shared = asyncio.ensure_future(until_shared(run, 2))
        await asyncio.wait([other, shared], return_when=asyncio.FIRST_COMPLETED)
        shared.cancel()
        go.set()
        assert (await first).headers["x-gemmapy-model"].startswith("demo-thinking")
        assert (await other).headers["x-gemmapy-model"].startswith("demo:")


# --- failures, secrets and reloads -------------------------------------------------------------------


@asynccontextmanager
async def under_load(run: Running, key: str) -> AsyncIterator[list[int]]:
    """Four clients call until the block is left; gives the statuses of their calls."""
    statuses: list[int] = []
    stop = asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            statuses.append((await chat(run, key)).status)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(load())
        yield statuses
        stop.set()


async def until(wanted: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await wanted():  # noqa: ASYNC110  (only polling shows it)
            await asyncio.sleep(0.02)


@asynccontextmanager
async def killed(postgres: PostgresServer) -> AsyncIterator[None]:
    """The database server is down until the block is left."""
    postgres.kill()
    try:
        yield
    finally:
        await postgres.start()


async def test_calls_with_a_verified_key_succeed_while_the_database_is_down(
    start: Start, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "LIFE", 0.2)
    monkeypatch.setattr(verified, "AGAIN", 0.1)
    if postgres.process is None:
        await postgres.start()
    async with start(yaml(await postgres.create(f"killed_{id(start)}"))) as run:
        key = (await Admin(run).key_for("alice"))["key"]
        async with under_load(run, key) as statuses:
            await asyncio.sleep(0.3)
            async with killed(postgres):
                await asyncio.sleep(0.5)
                error = await error_of(await chat(run, "sk-gemmapy-unknown"), 503)
                assert error["code"] == "database_unavailable"
                assert (await error_of(await Admin(run).ask("GET", "keys"), 503))["code"] == "database_unavailable"
                await asyncio.sleep(0.5)
            during = len(statuses)

            async def back() -> bool:
                return await status(run, "sk-gemmapy-unknown") == 401 and len(statuses) > max(during, 20)

            await until(back)
        assert set(statuses) == {200}


async def test_the_last_use_of_a_key_is_shown(start: Start, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uses, "GATHER", 0.01)
    async with start(yaml(sqlite_url)) as run:
        admin = Admin(run)
        made = await admin.key_for("alice")
        assert made["last_used_at"] is None and await status(run, made["key"]) == 200

        async def written() -> bool:
            used = (await admin.json("GET", f"keys/{made['id']}"))["last_used_at"]
            return used is not None and used >= made["created_at"]

        await until(written)


async def test_a_last_use_is_written_when_the_server_stops(start: Start, sqlite_url: str) -> None:
    async with start(yaml(sqlite_url)) as run:
        made = await Admin(run).key_for("alice")
        assert await status(run, made["key"]) == 200
    async with start(yaml(sqlite_url)) as run:
        assert (await Admin(run).json("GET", f"keys/{made['id']}"))["last_used_at"] >= made["created_at"]


@pytest.mark.parametrize("secret", ["", "canary-secret-of-the-server"], ids=["kept", "given"])
async def test_no_key_or_secret_is_ever_logged(
    start: Start,
    sqlite_url: str,
    secret: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = yaml(sqlite_url).replace("accounts: {}", f"accounts: {{secret: {secret}}}") if secret else yaml(sqlite_url)
    with caplog.at_level(logging.DEBUG):
        async with start(f"{text}keys: {{config: canary-yaml}}\nlog: {{level: debug}}\n") as run:
            made = await Admin(run).key_for("alice")
            keys = [made["key"], "canary-yaml", ROOT, "sk-gemmapy-canary-wrong", "canary-wrong"]
            for key in keys:
                await chat(run, key)
                await Admin(run, key).ask("POST", "keys", {"user": "nobody"})
                await run.http.get(f"{run.url}/nowhere", headers=bearer(key))
            secrets = [secret, run.server.live.pipeline.value.guard.verifiers[0].secret.hex()]  # type: ignore[attr-defined]
            await Admin(run).json("DELETE", f"keys/{made['id']}")
            await chat(run, made["key"])

            async def broken(*_: object) -> Caller:
                raise ZeroDivisionError

            monkeypatch.setattr(run.server.live.pipeline.value.guard.verifiers[0], "verify", broken)
            assert (await chat(run, keys[3])).status == 500
    said = caplog.text + "".join(capfd.readouterr())
    assert "ZeroDivisionError" in said and "status" in said
    assert [key for key in (*keys, *secrets) if key and key in said] == []
    assert made["key"][20:] not in said


async def test_accounts_can_be_enabled_by_a_reload_and_keys_survive_a_reload(start: Start, sqlite_url: str) -> None:
    async with start(f"{BARE}\ndatabase: {{url: '{sqlite_url}'}}\nkeys: {{config: a-key}}\n") as run:
        assert await status(run, "a-key") == 200
        run.configure(yaml(sqlite_url))
        assert await run.server.reload()
        key = (await Admin(run).key_for("alice"))["key"]
        assert (await status(run, key), await status(run, "a-key")) == (200, 401)
        assert await run.server.reload()
        assert await status(run, key) == 200


async def test_a_new_secret_is_refused_while_keys_of_the_old_one_are_valid(
    start: Start, sqlite_url: str, tmp_path: Path
) -> None:
    other = yaml(sqlite_url).replace("accounts: {}", "accounts: {secret: another-secret-of-16}")
    (file := tmp_path / "other.yaml").write_text(f"upstreams: {{demo: {{demo: {{}}}}}}\n{other}")
    async with start(yaml(sqlite_url)) as run:
        key = (await Admin(run).key_for("alice"))["key"]
        run.configure(other)
        assert not await run.server.reload()
        assert await status(run, key) == 200, "the previous configuration stays in use"
    with pytest.raises(ConfigError, match=r"accounts.secret.*still working: 1.*keys revoke --all"):
        async with start(other):
            pass
    assert await asyncio.to_thread(main, ["keys", "revoke", "--all", "--config", str(file)]) == 0
    async with start(other) as run:
        new = (await Admin(run).key_for("bob"))["key"]
        assert (await status(run, key), await status(run, new)) == (401, 200)
        run.configure(yaml(sqlite_url))
        assert not await run.server.reload()


async def test_a_reload_cannot_restore_an_old_secret_while_keys_of_the_new_one_are_valid(
    start: Start, sqlite_url: str
) -> None:
    other = yaml(sqlite_url).replace("accounts: {}", "accounts: {secret: another-secret-of-16}")
    async with start(yaml(sqlite_url)) as run:
        made = await Admin(run).key_for("alice")
        await Admin(run).json("DELETE", f"keys/{made['id']}")
        run.configure(other)
        assert await run.server.reload()
        new = (await Admin(run).key_for("bob"))["key"]
        run.configure(yaml(sqlite_url))
        assert not await run.server.reload()
        assert await status(run, new) == 200


async def test_a_configured_key_with_the_name_of_a_database_user_is_warned_about(
    start: Start, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with start(yaml(sqlite_url)) as run:
        await Admin(run).key_for("alice")
    async with start(yaml(sqlite_url, "keys: {alice: a-key}\n")) as run:
        assert await status(run, "a-key") == 200
    assert "keys.alice: a user in the database has this name, too" in caplog.text


async def test_stock_clients_say_that_a_key_is_wrong(start: Start, sqlite_url: str) -> None:
    async with start(yaml(sqlite_url)) as run, run.client(api_key="sk-gemmapy-wrong") as client:
        with pytest.raises(openai.AuthenticationError, match="not valid on this server"):
            await client.models.list()


async def test_a_revoked_key_and_a_disabled_user_stay_blocked_while_the_database_is_down(
    start: Start, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: Database) -> Any:
        raise DatabaseAway("gone")

    async with start(yaml(sqlite_url)) as run:
        admin = Admin(run)
        ended, other, bobs = [await admin.key_for(user) for user in ("alice", "alice", "bob")]
        for made in (ended, other, bobs):
            assert await status(run, made["key"]) == 200
        await admin.json("DELETE", f"keys/{ended['id']}")
        await admin.json("PUT", "users/bob", {"disabled": True})
        monkeypatch.setattr(Database, "reading", gone)
        assert [await status(run, made["key"]) for made in (other, ended, bobs)] == [200, 503, 503]
