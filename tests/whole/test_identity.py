"""Callers without credentials are refused everywhere; a trusted gateway or a token can identify them."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy import registry
from proxy.accounts.records import Wanted
from proxy.cli import main
from proxy.errors import ConfigError
from proxy.types import Route
from proxy.webtokens import keyset
from tests.conftest import ASK, BARE, Running, Start
from tests.provider import AUDIENCE, ISSUER, Provider, provider, public, rsa_key, token
from tests.whole.asking import error_of
from tests.whole.commands import served

ROOT = "root-0123456789-0123456789"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def jwt_of(place: str | Path, **more: Any) -> str:
    told = {"jwks": str(place), "issuer": ISSUER, "audience": AUDIENCE, **more}
    return f"jwt: {json.dumps(told)}\n"


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [public(rsa_key(), kid="one")]}))
    return file


@pytest.fixture(autouse=True)
def _root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMAPY_ADMIN_KEY", ROOT)


# --- default deny ------------------------------------------------------------------------------------

KEYED = "keys: {bob: bob-key, ops: {key: ops-key, role: admin}}\n"


@asynccontextmanager
async def everything(start: Start, tmp_path: Path, keys_file: Path, database: str) -> AsyncIterator[Running]:
    """A server with every plugin, every endpoint and every kind of authentication."""
    plugins = "".join(f"  {name}: {{}}\n" for name in registry.known())
    chains = BARE.replace("chat: []", "chat: [conversations]")
    text = (
        f"{chains}\nwrites: local\naccounts: {{}}\ndatabase: {{url: '{database}'}}\n{KEYED}"
        f"{jwt_of(keys_file, role='roles', admin=['boss'])}"
        "identity_header: {role: X-Forwarded-Role}\n"
        "listen: {port: 0, drain: 1, trusted_proxies: [192.0.2.1]}\n"
        f"plugins:\n{plugins}"
    )
    async with start(text) as run:
        yield run


async def made(run: Running, **more: Any) -> Any:
    for path, body in (("users", {"name": "alice"}), ("keys", {"user": "alice", **more})):
        response = await run.http.post(f"{run.url}/api/admin/{path}", json=body, headers=bearer(ROOT))
    return await response.json()


async def ask(run: Running, route: Route, headers: Mapping[str, str]) -> int:
    path = re.sub(r"\{[^}]+\}", "x", route.path)
    async with run.http.request(route.method, run.url + path, headers=headers) as response:
        return response.status


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the routes do not depend on the database
async def test_every_route_is_closed_to_callers_without_the_role_for_it(
    start: Start, tmp_path: Path, keys_file: Path, database_url: str
) -> None:
    async with everything(start, tmp_path, keys_file, database_url) as run:
        low, revoked = (await made(run))["key"], await made(run)
        await run.http.delete(f"{run.url}/api/admin/keys/{revoked['id']}", headers=bearer(ROOT))
        accounts: Any = run.server.live.pipeline.value.guard.verifiers[0]
        expired, _ = await accounts.store.create(Wanted("alice", expires=accounts.store.now()), accounts.secret)
        nobody: list[Mapping[str, str]] = [
            {},
            *map(bearer, ("wrong", "sk-gemmapy-wrong", expired, revoked["key"], low[:-1])),
            bearer(token(exp=1)),
            {"Authorization": "Basic Ym9iOmJvYi1rZXk="},
            {"X-Forwarded-User": "root", "X-Forwarded-Role": "admin"},
        ]
        users = [bearer(low), bearer("bob-key"), bearer(token())]
        admins = [bearer(ROOT), bearer("ops-key"), bearer(token(roles=["boss"]))]
        routes: tuple[Route, ...] = run.server.live.pipeline.router.routes
        assert {route.who for route in routes} == {"public", "user", "admin"} and len(routes) > 35
        for route in routes:
            strangers = [await ask(run, route, headers) for headers in nobody]
            if route.who != "public":
                assert set(strangers) == {401}, (route.method, route.path)
                assert {await ask(run, route, headers) for headers in users} & {401, 403} == (
                    {403} if route.who == "admin" else set()
                ), (route.method, route.path)
                if route.path not in ("/api/delete", "/api/admin/keys/{id}"):
                    assert not {await ask(run, route, headers) for headers in admins} & {401, 403}, route.path
            else:
                assert not set(strangers) & {401, 403}, (route.method, route.path)


def test_a_route_is_for_admins_by_default() -> None:
    assert Route("GET", "/x", lambda: None).who == "admin"  # type: ignore[arg-type,return-value]


async def test_another_callers_cache_entries_cannot_be_invalidated(start: Start, tmp_path: Path) -> None:
    text = "plugins: {cache: {}}\nchains: {chat: [cache]}\nkeys: {a: a-key, b: b-key}\n"
    async with start(text) as run:
        answer = await run.http.post(f"{run.url}/v1/chat/completions", json=ASK, headers=bearer("a-key"))
        body = {"key": answer.headers["x-gemmapy-cache-key"], "confirm": True}
        for key, matched in (("b-key", 0), ("a-key", 1)):
            told = await run.http.post(f"{run.url}/api/cache/invalidate", json=body, headers=bearer(key))
            assert (await told.json())["matched"] == matched


# --- identity headers of a gateway -------------------------------------------------------------------

TRUSTED = "listen: {port: 0, trusted_proxies: [127.0.0.0/8]}\n"
STRANGER = "listen: {port: 0, trusted_proxies: [192.0.2.1]}\n"
DESK = "plugins: {desk: {use: 'tests.whole.rigged:Desk'}}\n"
HEADER = f"{BARE}\nidentity_header: {{role: X-Forwarded-Role, admins: [zoe]}}\n{DESK}"


@pytest.mark.parametrize(
    ("headers", "user", "admin"),
    [
        ({"X-Forwarded-User": "alice"}, 200, 403),
        ({"X-Forwarded-User": "zoe"}, 200, 200),
        ({"X-Forwarded-User": "alice", "X-Forwarded-Role": "admin"}, 200, 200),
        ({"X-Forwarded-User": "alice", "X-Forwarded-Role": "administrator"}, 200, 403),
        ({"X-Forwarded-Role": "admin"}, 401, 401),
        ({"X-Forwarded-User": ""}, 401, 401),
        ({"X-Forwarded-User": "a" * 300}, 401, 401),
        ({}, 401, 401),
        (bearer("a-key"), 200, 403),
        ({"X-Forwarded-User": "zoe", **bearer("a-key")}, 200, 200),
    ],
)
async def test_a_trusted_gateway_can_name_the_caller(
    start: Start, headers: dict[str, str], user: int, admin: int
) -> None:
    async with start(f"{HEADER}{TRUSTED}keys: {{bob: a-key}}\n") as run:
        statuses = [(await run.http.get(f"{run.url}/desk/{who}", headers=headers)).status for who in ("user", "admin")]
        assert statuses == [user, admin]


async def test_identity_headers_of_others_are_ignored_and_hidden_from_plugins(start: Start) -> None:
    claimed = {"X-Forwarded-User": "zoe", "x-forwarded-ROLE": "admin", "X-Forwarded-For": "192.0.2.1"}
    async with start(f"{HEADER}{STRANGER}keys: {{bob: a-key}}\n") as run:
        assert (await run.http.get(f"{run.url}/desk/user", headers=claimed)).status == 401
        response = await run.http.get(f"{run.url}/desk/admin", headers={**claimed, **bearer("a-key")})
        assert response.status == 403
        seen = await (await run.http.get(f"{run.url}/desk/headers/public", headers=claimed)).json()
        assert "x-forwarded-for" in seen and not {"x-forwarded-user", "x-forwarded-role"} & set(seen)


async def test_two_identity_headers_are_refused(start: Start) -> None:
    async with start(f"{HEADER}{TRUSTED}") as run:
        twice = [("X-Forwarded-User", "zoe"), ("X-Forwarded-User", "alice")]
        error = await error_of(await run.http.get(f"{run.url}/desk/user", headers=twice), 401)
        assert error["code"] == "invalid_identity"


async def test_the_callers_name_is_logged(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gemmapy.requests"):
        async with start(f"{HEADER}{TRUSTED}") as run:
            await run.http.get(f"{run.url}/desk/user", headers={"X-Forwarded-User": "älice"})
    assert [record.told["caller"] for record in caplog.records if hasattr(record, "told")] == ["älice"]


async def test_an_identity_header_without_trusted_proxies_is_a_configuration_error(start: Start) -> None:
    with pytest.raises(ConfigError, match="identity_header: nobody is believed"):
        async with start(HEADER):
            pass


# --- web tokens --------------------------------------------------------------------------------------


async def test_a_tokens_roles_decide_what_it_gives_access_to(start: Start, keys_file: Path) -> None:
    text = f"{BARE}\n{jwt_of(keys_file, user='email', role='groups', admin='boss')}writes: local\n"
    async with start(text) as run:
        user, boss = token(email="a@b.c"), token(email="z@b.c", groups=["boss"])
        async with run.client(api_key=user) as client:
            for _ in range(3):
                assert (await client.chat.completions.create(**ASK)).choices
        statuses = [
            (await run.http.post(f"{run.url}/api/pull", json={}, headers=bearer(one))).status for one in (user, boss)
        ]
        assert statuses[0] == 403 and statuses[1] not in (401, 403)
        assert (await run.http.get(f"{run.url}/v1/models", headers=bearer(token()))).status == 401


async def test_tokens_get_a_503_until_the_identity_provider_is_reachable(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyset, "SOON", 0.05)
    there = Provider(status=500)
    async with provider(there), start(f"{BARE}\n{jwt_of(there.url)}") as run:
        error = await error_of(await run.http.get(f"{run.url}/v1/models", headers=bearer(token())), 503)
        assert error["code"] == "keys_unavailable"
        there.status = 200
        async with asyncio.timeout(10):
            while (await run.http.get(f"{run.url}/v1/models", headers=bearer(token()))).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_the_identity_providers_keys_survive_a_reload(start: Start) -> None:
    async with provider() as there, start(f"{BARE}\n{jwt_of(there.url)}") as run:
        assert (await run.http.get(f"{run.url}/v1/models", headers=bearer(token()))).status == 200
        there.status = 500
        assert await run.server.reload()
        assert (await run.http.get(f"{run.url}/v1/models", headers=bearer(token()))).status == 200


# --- the first key, and the command line -------------------------------------------------------------


def config_file(tmp_path: Path, workers: int = 1, more: str = "accounts: {}\n") -> Path:
    file = tmp_path / "c.yaml"
    file.write_text(
        f"listen: {{port: 0, drain: 1, workers: {workers}}}\n"
        "upstreams: {demo: {demo: {}}}\nchains: {chat: []}\n"
        f"database: {{url: 'sqlite:///{tmp_path}/data/records.db'}}\n{more}"
    )
    return file


FOUND = re.compile(r"sk-gemmapy-[\w-]{43}")


async def test_only_one_worker_prints_an_admin_key_and_only_once(tmp_path: Path) -> None:
    file = str(config_file(tmp_path, workers=2))
    async with served("serve", "--config", file, env={"GEMMAPY_ADMIN_KEY": ""}) as serving:
        serving.process.send_signal(signal.SIGTERM)
        (key,) = FOUND.findall(await serving.rest())
        assert key


async def test_an_admin_key_is_created_only_where_there_is_none(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    text = f"{BARE}\naccounts: {{}}\ndatabase: {{url: 'sqlite:///{tmp_path}/x.db'}}\n"

    async def printed(text: str) -> list[str]:
        async with start(text) as run:
            assert await run.server.reload()
        return FOUND.findall("".join(capfd.readouterr()))

    assert await printed(text) == []
    monkeypatch.delenv("GEMMAPY_ADMIN_KEY")
    assert await printed(f"{text}{KEYED}") == []
    assert await printed(text.replace("accounts: {}", "accounts: {bootstrap: false}")) == []
    (key,) = await printed(text)
    assert await printed(text) == []
    async with start(text) as run:
        listed = await (await run.http.get(f"{run.url}/api/admin/keys", headers=bearer(key))).json()
        assert [(one["user"], one["role"]) for one in listed["data"]] == [("admin", "admin")]


async def test_keys_are_created_listed_and_revoked_on_the_command_line(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config_file(tmp_path)

    async def said(verb: str, *more: str) -> str:
        assert await asyncio.to_thread(main, ["keys", verb, "--config", str(file), *more]) == 0
        return capsys.readouterr().out

    limits = ("--models", "demo", "--routes", "chat", "--name", "a b", "--expires", "30d")
    out = await said("create", "--user", "alice", *limits)
    (key,), id = FOUND.findall(out), out.split()[0]
    out = await said("list", "--user", "alice")
    assert key not in out and key[:17] in out
    assert all(word in out for word in (id, "models=demo", "routes=chat", "name='a b'", "expires=", "used=never"))
    assert await said("list", "--user", "nobody") == ""
    async with start(re.sub(r"(listen|upstreams):.*\n", "", file.read_text())) as run:
        assert (await run.http.get(f"{run.url}/v1/models", headers=bearer(key))).status == 200
    assert "revoked=" in await said("revoke", id)
    await said("create", "--user", "bob")
    assert await said("revoke", "--all") == "keys revoked: 1\n"


def test_the_command_line_creates_no_key_with_another_secret_than_the_servers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for secret, status in (("the-secret-of-16-letters", 0), ("another-secret-of-16", 1)):
        file = config_file(tmp_path, more=f"accounts: {{secret: {secret}}}\n")
        assert main(["keys", "create", "--user", "alice", "--config", str(file)]) == status
    told = capsys.readouterr()
    assert len(FOUND.findall(told.out)) == 1
    assert "`accounts.secret` is not the one" in told.err and "keys revoke --all" in told.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("create", "--user", "a b"), "cannot be a name"),
        (("create", "--user", "bob"), "under `keys:`"),
        (("create", "--user", "x", "--expires", "soon"), "is not a duration such as"),
        (("create", "--user", "x", "--models", ""), "--models: String should have at least 1 character"),
        (("create", "--user", "x", "--name", "n" * 129), "--name: String should have at most 128 characters"),
        (("revoke",), "one of the arguments ID --all is required"),
        (("revoke", "key_1", "--all"), "not allowed with argument"),
        (("revoke", "key_nowhere"), "There is no key 'key_nowhere'"),
    ],
)
def test_invalid_arguments_of_the_command_keys_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str
) -> None:
    file = str(config_file(tmp_path, more=f"accounts: {{}}\n{KEYED}"))
    try:
        status = main(["keys", *arguments, "--config", file])
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status != 0 and told in capsys.readouterr().err


def test_without_accounts_no_key_is_created(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "list", "--config", str(config_file(tmp_path, more=""))]) == 1
    assert "no `accounts:`" in capsys.readouterr().err


async def test_an_admin_key_from_the_environment_must_not_be_too_short(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMMAPY_ADMIN_KEY", "short")
    with pytest.raises(ConfigError, match="GEMMAPY_ADMIN_KEY has fewer than 16"):
        async with start(f"{BARE}\naccounts: {{}}\ndatabase: {{url: 'sqlite:///{tmp_path}/x.db'}}\n"):
            pass
