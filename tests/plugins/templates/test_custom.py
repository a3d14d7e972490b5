"""Callers' own templates, with SQLite and PostgreSQL: versions, aliases, owners, YAML, counts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import yaml
from sqlalchemy import update

from plugins.templates.tables import VERSIONS
from tests.conftest import Running, Start
from tests.whole.asking import error_of, user, whole

A, B, OPS = ({"Authorization": f"Bearer {key}"} for key in ("a-key", "b-key", "o-key"))
KEYS = "keys: {ann: a-key, bob: b-key, ops: {key: o-key, role: admin}}\n"
GREET: dict[str, Any] = {
    "name": "greet",
    "category": "own",
    "description": "Greets somebody.",
    "variables": {"who": {"description": "Whom."}},
    "input": "who",
    "messages": [{"role": "user", "content": "Hello {{who}}, one."}],
}


def config(url: str, more: str = "") -> str:
    return (
        f"database: {{url: '{url}'}}\nchains: {{chat: [templates]}}\n{KEYS}"
        f"plugins: {{templates: {{model: demo, max_templates: 3, max_versions: 4{more}}}}}\n"
    )


@pytest.fixture
async def run(start: Start, database_url: str) -> AsyncIterator[Running]:
    async with start(config(database_url)) as running:
        yield running


async def ask(run: Running, method: str, path: str, who: dict[str, str] = A, **options: Any) -> aiohttp.ClientResponse:
    return await run.http.request(method, f"{run.url}/api/templates{path}", headers=who, **options)


async def ok(run: Running, method: str, path: str, who: dict[str, str] = A, **options: Any) -> Any:
    return await whole(await ask(run, method, path, who, **options))


async def create(run: Running, who: dict[str, str] = A, **fields: Any) -> Any:
    return await ok(run, "POST", "/custom", who, json={**GREET, **fields})


def worded(text: str) -> dict[str, Any]:
    return {**GREET, "messages": [{"role": "user", "content": f"Hello {{{{who}}}}, {text}."}]}


async def sent_or_code(run: Running, model: str, who: dict[str, str] = A) -> str:
    """The last message that the model got, or the code of the error."""
    body = {"model": model, "messages": user("Bo")}
    response = await run.http.post(f"{run.url}/v1/chat/completions", json=body, headers=who)
    if response.status != 200:
        return str((await response.json())["error"]["code"])
    assert response.headers["x-gemmapy-template"].startswith(("greet@", "fine@"))
    return str(run.ollama.seen[-1].body["messages"][-1]["content"])


async def test_versions_stay_and_aliases_move(run: Running) -> None:
    made = await create(run, aliases=["production"])
    id = made["id"]
    assert made == {
        "id": id, "name": "greet", "version": 1, "public": False, "aliases": {"production": 1, "latest": 1},
    }  # fmt: skip
    assert (await ok(run, "PUT", f"/custom/{id}", json=worded("two")))["version"] == 2
    assert (await ok(run, "PUT", f"/custom/{id}", json=worded("two")))["version"] == 2, (
        "equal contents are not a new version"
    )
    words = [
        await sent_or_code(run, f"template:greet{version}") for version in ("", "@1", "@2", "@latest", "@production")
    ]
    assert [one.split(", ")[1] for one in words] == ["two.", "one.", "two.", "two.", "one."]
    moved = await ok(run, "PUT", f"/custom/{id}", json={"aliases": {"production": 2, "old": 1}})
    assert moved["aliases"] == {"production": 2, "old": 1, "latest": 2} and moved["version"] == 2
    assert await sent_or_code(run, "template:greet@production") == "Hello Bo, two."
    assert await sent_or_code(run, f"template:{id}@old") == "Hello Bo, one."
    moved = await ok(run, "PUT", f"/custom/{id}", json={**worded("three"), "aliases": ["production"]})
    assert moved["aliases"] == {"production": 3, "old": 1, "latest": 3}
    assert (await ok(run, "PUT", f"/custom/{id}", json={"aliases": {"old": None}}))["aliases"].keys() == {
        "production", "latest",
    }  # fmt: skip
    told = await ok(run, "GET", "/greet/versions")
    assert [one["version"] for one in told["versions"]] == [3, 2, 1] and told["versions"][0]["created_at"] > 1e9
    assert told["aliases"] == {"production": 3, "latest": 3}
    one = await ok(run, "GET", f"/{id}?version=1")
    assert (one["messages"], one["source"], one["id"]) == (GREET["messages"], "own", id)
    for version in ("@4", "@nope", "@old", "@x y"):
        assert await sent_or_code(run, f"template:greet{version}") == "template_version_not_found"


async def test_other_callers_templates_are_not_accessible(run: Running) -> None:
    id = (await create(run))["id"]
    for method, path, body in (
        ("GET", "/greet", None), ("GET", f"/{id}", None), ("GET", "/greet/versions", None),
        ("GET", f"/{id}/versions", None), ("PUT", f"/custom/{id}", {"public": True}),
        ("PUT", f"/custom/{id}", worded("mine")), ("PUT", f"/custom/{id}", {"template": "mine"}),
        ("DELETE", f"/custom/{id}", None), ("GET", f"/export?name={id}", None), ("GET", "/export?name=greet", None),
        ("POST", "/render", {"name": "greet", "variables": {"who": "x"}}),
        ("POST", "/render", {"name": id, "variables": {"who": "x"}, "generate": True}),
    ):  # fmt: skip
        for who in (B, OPS):
            error = await error_of(await ask(run, method, path, who, json=body), 404)
            assert error["code"] == "template_not_found", (method, path)
        assert (await ask(run, method, path, {}, json=body)).status == 401
    assert (
        await sent_or_code(run, "template:greet", B)
        == await sent_or_code(run, f"template:{id}", B)
        == "template_not_found"
    )
    assert (await ok(run, "GET", "?category=own", B))["templates"] == []
    assert "own" not in str(await ok(run, "GET", "/categories", B))
    assert yaml.safe_load(await (await ask(run, "GET", "/export", B)).text()) == {"templates": []}
    assert [one["name"] for one in (await ok(run, "GET", "?category=own"))["templates"]] == ["greet"]
    assert (await create(run, B, description="Bob's"))["id"] != id, "each owner has separate names"
    assert (await ok(run, "GET", "/greet"))["description"] == "Greets somebody."
    assert (await ok(run, "GET", "/greet", B))["description"] == "Bob's"


async def test_public_templates_can_be_used_by_all_and_changed_by_their_owner(run: Running) -> None:
    id = (await create(run, is_public=True))["id"]
    assert await sent_or_code(run, "template:greet", B) == "Hello Bo, one."
    (listed,) = (await ok(run, "GET", "?category=own", B))["templates"]
    assert (listed["source"], listed["id"]) == ("public", id)
    for method, body in (("PUT", {"public": False}), ("DELETE", None)):
        await error_of(await ask(run, method, f"/custom/{id}", B, json=body), 404)
    mine = (await create(run, B, messages=[{"content": "Bob's {{who}}"}]))["id"]
    assert await sent_or_code(run, "template:greet", B) == "Bob's Bo", (
        "the caller's own template takes precedence over a public one"
    )
    assert len((await ok(run, "GET", "?category=own", B))["templates"]) == 1
    error = await error_of(await ask(run, "PUT", f"/custom/{mine}", B, json={"public": True}), 400)
    assert (error["param"], error["code"]) == ("public", "name_taken")
    await ok(run, "PUT", f"/custom/{id}", json={"public": False})
    assert await sent_or_code(run, "template:greet", OPS) == "template_not_found"
    await ok(run, "PUT", f"/custom/{mine}", B, json={"public": True})
    assert await ok(run, "DELETE", f"/custom/{mine}", OPS) == {"id": mine, "deleted": True}, "admins can delete it"
    assert await sent_or_code(run, "template:greet", B) == "template_not_found"
    await create(run, B, is_public=True)
    await error_of(await ask(run, "DELETE", "/custom/greet", OPS), 404)
    assert (await ok(run, "PUT", "/custom/greet", json={"aliases": ["x"]}))["id"] == id
    await ok(run, "DELETE", "/custom/greet")
    await error_of(await ask(run, "DELETE", f"/custom/{id}"), 404)
    assert (await ok(run, "GET", "/greet"))["source"] == "public", "Bob's is still there"


WRONG: list[tuple[dict[str, Any], str | None, str]] = [
    ({"name": "summarize"}, "name", "is taken"),
    ({"name": "Summarize"}, "name", "cannot be a name"),
    ({"name": None}, "name", "valid string"),
    ({"version": 3}, "version", "server numbers the versions"),
    ({"messages": []}, "messages", "at least 1 item"),
    ({"messages": "x"}, "messages", "valid tuple"),
    ({"messages": [{"role": "user", "content": "{{when}}"}]}, None, "'when' is not under variables"),
    ({"variables": {"who": {"type": "date"}}}, "variables.who.type", "'string', 'integer'"),
    ({"public": "yes"}, "public", "expected a boolean"),
    ({"aliases": ["latest"]}, "aliases", "cannot be an alias"),
    ({"aliases": {"production": 2}}, "aliases.production", "no version 2"),
    ({"aliases": 3}, "aliases", "expected an object"),
    ({"aliases": {"production": 0}}, "aliases.production", "below the minimum"),
    ({"aliases": {f"a{n}": 1 for n in range(21)}}, "aliases", "at most 20 aliases"),
    ({"colour": 1}, "colour", "no such field"),
    ({"template": "x"}, None, "write only one of them"),
    ({"schema": {"type": "nothing"}}, "schema", "nothing"),
]


async def test_an_invalid_template_is_a_400_naming_the_field(run: Running) -> None:
    for fields, param, says in WRONG:
        error = await error_of(await ask(run, "POST", "/custom", json={**GREET, **fields}), 400)
        assert error["param"] == param and says in error["message"], (fields, error)
    assert (await ok(run, "GET", "?category=own"))["templates"] == []


async def test_templates_versions_and_aliases_are_limited(run: Running) -> None:
    ids = [(await create(run, name=f"t{n}"))["id"] for n in range(3)]
    error = await error_of(await ask(run, "POST", "/custom", json=GREET), 400)
    assert error["code"] == "too_many_templates"
    again = await error_of(await ask(run, "POST", "/custom", B, json={**GREET, "name": "summarize"}), 400)
    assert again["code"] == "name_taken"
    for n in range(2, 5):
        await ok(run, "PUT", f"/custom/{ids[0]}", json={"template": f"{n} {{{{who}}}}", "variables": ["who"]})
    wrong = {"template": "5", "name": "t0"}
    error = await error_of(await ask(run, "PUT", f"/custom/{ids[0]}", json=wrong), 400)
    assert error["code"] == "too_many_versions"
    error = await error_of(await ask(run, "PUT", f"/custom/{ids[1]}", json={"template": "x", "name": "t9"}), 400)
    assert error["param"] == "name" and "is called 't1'" in error["message"]
    await ok(run, "DELETE", f"/custom/{ids[2]}")
    await create(run, name="t2")


async def test_concurrent_writers_lose_no_version(start: Start, database_url: str) -> None:
    async with start(config(database_url, ", max_versions: 50").replace("max_versions: 4, ", "")) as run:
        id = (await create(run))["id"]
        told = await asyncio.gather(
            *(ok(run, "PUT", f"/custom/{id}", json=worded(f"number {n}")) for n in range(20)),
        )
        assert sorted(one["version"] for one in told) == list(range(2, 22))
        codes = [await sent_or_code(run, f"template:greet@{version}") for version in range(2, 22)]
        assert len(set(codes)) == 20
        creations = await asyncio.gather(*(ask(run, "POST", "/custom", B, json=GREET) for _ in range(5)))
        assert sorted(one.status for one in creations) == [200, 400, 400, 400, 400]
        more = await asyncio.gather(
            *(ask(run, "POST", "/custom", B, json={**GREET, "name": f"more{n}"}) for n in range(8))
        )
        assert sorted(one.status for one in more) == [200, 200, *[400] * 6], "at most three versions are kept"


async def test_a_template_that_is_no_longer_valid_does_not_hide_the_others(run: Running) -> None:
    id = (await create(run))["id"]
    await create(run, name="fine")
    async with run.server.services.state["database"].writing() as connection:
        odd = {"name": "greet", "version": 1, "colour": "blue", "variables": {"who": {"old": 1}}, "messages": []}
        await connection.execute(update(VERSIONS).where(VERSIONS.c.template == id).values(document=json.dumps(odd)))
    assert [one["name"] for one in (await ok(run, "GET", "?category=own"))["templates"]] == ["fine", "greet"]
    error = await error_of(await ask(run, "GET", "/greet"), 400)
    assert error["code"] == "invalid_template" and await sent_or_code(run, "template:fine") == "Hello Bo, one."


async def test_an_exported_yaml_file_can_be_imported(run: Running) -> None:
    id = (await create(run))["id"]
    await ok(run, "PUT", f"/custom/{id}", json={**worded("two\n{{who}}\n"), "aliases": ["production"]})
    await ok(run, "PUT", f"/custom/{id}", json=worded("three"))
    await create(run, name="other", messages=[{"content": "yes"}], variables={}, input=None)
    response = await ask(run, "GET", "/export")
    text = await response.text()
    assert response.content_type == "application/yaml"
    assert [(one["name"], one["version"]) for one in yaml.safe_load(text)["templates"]] == [
        ("greet", 2), ("greet", 3), ("other", 1),
    ]  # fmt: skip
    whole_one = await (await ask(run, "GET", "/export?name=greet")).text()
    assert [one["version"] for one in yaml.safe_load(whole_one)["templates"]] == [1, 2, 3]
    sent: dict[str, Any] = {
        "data": whole_one + "- {name: other, template: x}\n",
        "headers": {**B, "Content-Type": "application/yaml"},
    }
    told = (await whole(await run.http.post(f"{run.url}/api/templates/import", **sent)))["imported"]
    assert [(one["name"], one["version"], one["created"]) for one in told] == [
        ("greet", 1, True), ("greet", 2, False), ("greet", 3, False), ("other", 1, True),
    ]  # fmt: skip
    assert told[2]["aliases"] == {"production": 2, "latest": 3}
    assert await sent_or_code(run, "template:greet@1", B) == "Hello Bo, one."
    assert await sent_or_code(run, "template:greet", B) == "Hello Bo, three."
    for kind, body, status, says in (
        ("application/yaml", "name: x\n", 400, "body:1: messages: this field is required"),
        ("application/yaml", "name: [", 400, "not YAML"),
        ("application/yaml", b"\xff", 400, "UTF-8"),
        ("application/yaml", "a: &a [1]\nb: *a", 400, "references"),
        ("application/yaml", "- {name: n1, template: x}\n- {name: summarize, template: x}", 400, "is taken"),
        ("application/yaml", "- {name: n1, template: x}\n- {name: n2, template: x}", 400, "which is the maximum"),
        ("application/json", "{}", 415, "application/yaml"),
    ):
        headers = {**B, "Content-Type": kind}
        answer = await run.http.post(f"{run.url}/api/templates/import", data=body, headers=headers)
        assert says in (await error_of(answer, status))["message"]
    names = [one["name"] for one in (await ok(run, "GET", "?limit=200", B))["templates"] if one["source"] == "own"]
    assert names == ["greet", "other"], "all come in, or none"


async def test_popular_lists_the_most_used_templates(run: Running) -> None:
    id = (await create(run))["id"]
    assert (await ok(run, "GET", "/popular"))["templates"] == []
    for _ in range(2):
        await sent_or_code(run, "template:greet")
    body = {"model": "demo", "messages": [], "template": {"name": "summarize", "variables": {"text": "x"}}}
    for who in (A, B, B):
        await whole(await run.http.post(f"{run.url}/v1/chat/completions", json=body, headers=who))
    failed = await run.http.post(f"{run.url}/v1/chat/completions", json={**body, "template": "summarize"}, headers=A)
    assert failed.status == 400, "a template that could not be filled does not count as used"
    popular = [(one["name"], one["uses"], one["id"]) for one in (await ok(run, "GET", "/popular"))["templates"]]
    assert popular == [("summarize", 3, None), ("greet", 2, id)]
    assert [one["name"] for one in (await ok(run, "GET", "/popular", B))["templates"]] == ["summarize"]
    assert len((await ok(run, "GET", "/popular?limit=1"))["templates"]) == 1
    await sent_or_code(run, "template:greet")
    await run.server.reload()
    await ok(run, "DELETE", f"/custom/{id}")
    assert [one["name"] for one in (await ok(run, "GET", "/popular"))["templates"]] == ["summarize"]


async def test_templates_survive_a_restart_and_unusual_characters_do_no_harm(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run:
        await create(run, description="nul \0 and 🦊")
        await sent_or_code(run, "template:greet")
    async with start(config(database_url)) as run:
        assert await sent_or_code(run, "template:greet") == "Hello Bo, one."
        (popular,) = (await ok(run, "GET", "/popular"))["templates"]
        assert (popular["uses"], popular["description"]) == (2, "nul \0 and 🦊")
        assert (await ok(run, "GET", "?search=%F0%9F%A6%8A"))["templates"] != []
        assert (await ok(run, "GET", "?search=100%25"))["templates"] == []
        for path in ("?search=%00", "?after=%00", "?category=%00", "?limit=1e9", "/popular?limit=x"):
            assert (await ask(run, "GET", path)).status == 400, path
        for path in ("/%00", "/tpl_%00", "/greet?version=a%20b", "/tpl_", "/%F0%9F%A6%8A", "/x/versions"):
            assert (await ask(run, "GET", path)).status == 404, path
        for model in ("template:\0", "template:greet@\0", "template:tpl_'--", f"template:greet@{10**8}"):
            assert (await sent_or_code(run, model)).endswith("not_found")
        assert await sent_or_code(run, f"template:greet@{10**30}") == "template_version_not_found"
        body = {"name": "greet", "version": 2**40, "variables": {"who": "x"}}
        assert (await ask(run, "POST", "/render", json=body)).status == 400


async def test_with_custom_off_there_is_no_database(start: Start) -> None:
    text = f"plugins: {{templates: {{model: demo, custom: false}}}}\nchains: {{chat: [templates]}}\n{KEYS}"
    async with start(text) as run:
        assert "database" not in run.server.services.state
        for method, path in (("POST", "/custom"), ("GET", "/export"), ("POST", "/import"), ("DELETE", "/custom/x")):
            assert (await ask(run, method, path)).status in (404, 405)
        response = await run.http.post(
            f"{run.url}/v1/chat/completions", json={"model": "template:summarize", "messages": user("x")}, headers=A
        )
        assert response.status == 200
        ((name, uses),) = [(one["name"], one["uses"]) for one in (await ok(run, "GET", "/popular"))["templates"]]
        assert (name, uses) == ("summarize", 1)
