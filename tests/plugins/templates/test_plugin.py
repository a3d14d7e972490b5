"""Calls that name a template, through a running server and the stock SDK."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from plugins.usage.tables import CALLS
from proxy import config as configuration
from proxy import registry
from proxy.errors import ConfigError
from tests.conftest import Running, Start
from tests.plugins.usage.asking import rows, writer_of
from tests.whole.asking import data_url, error_of, picture, schema, user, whole
from tests.whole.test_gateway import upstream_headers

OWN = """
templates:
  - name: greet
    version: 1
    aliases: [production]
    category: own
    description: Greets.
    variables: {who: {description: Whom.}, times: {type: integer, default: 1, minimum: 1}}
    input: who
    messages: [{role: system, content: Be kind.}, {role: user, content: "Greet {{who}} {{times}} times."}]
    model: demo-rendered
    parameters: {temperature: 0.5, max_tokens: 50}
  - name: greet
    version: 2
    variables: {who: {}}
    input: who
    messages: [{content: "Hail {{who}}!"}]
  - {name: maybe, variables: {a: {optional: true}}, messages: [{role: system, content: "{{#a}}A{{/a}}"}]}
  - {name: fixed, template: Say the time., schema: {type: object, properties: {time: {type: string}}, required: [time]}}
"""


@pytest.fixture
async def run(start: Start, tmp_path: Path) -> AsyncIterator[Running]:
    (tmp_path / "own.yaml").write_text(OWN)
    text = (
        f"plugins: {{templates: {{path: '{tmp_path}', model: demo, custom: false}}, cache: {{}}}}\n"
        "chains: {chat: [templates, cache], completions: [templates]}\n"
    )
    async with start(text) as running:
        yield running


async def sent(run: Running, **body: Any) -> tuple[list[tuple[str, str]], Any]:
    """What reached the model: the messages by role, and the whole request."""
    await whole(await run.chat(use_cache=False, **body))
    seen = run.ollama.seen[-1].body
    return [(one["role"], one["content"]) for one in seen["messages"]], seen


def greet(version: Any = None, **variables: Any) -> dict[str, Any]:
    return {"name": "greet", "version": version, "variables": variables}


async def test_the_stock_sdk_can_name_a_template_in_both_ways(run: Running) -> None:
    bo: Any = user("Bo")
    async with run.client() as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="demo", messages=[], extra_body={"template": greet(1, who="Ana", times="3")}
        )
        assert raw.headers["x-gemmapy-template"] == "greet@1" and "x-gemmapy-params" not in raw.headers
        assert "Greet Ana 3 times." in str(raw.parse().choices[0].message.content)
        stream = await client.chat.completions.create(model="template:greet@1", messages=bo, stream=True)
        words = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
        assert "Greet Bo 1 times." in words
        assert run.ollama.seen[-1].body["model"] == "demo-rendered:latest"
        with pytest.raises(openai.BadRequestError, match="'who' is missing"):
            await client.chat.completions.create(model="demo", messages=[], extra_body={"template": "greet"})


async def test_the_callers_messages_come_last_and_its_options_take_precedence(run: Running) -> None:
    messages, seen = await sent(run, template=greet(1, who="Ana"), messages=user("and then?"), temperature=1)
    assert messages == [("system", "Be kind."), ("user", "Greet Ana 1 times."), ("user", "and then?")]
    assert seen["model"] == "demo:latest", "the caller's model takes precedence over the template's"
    assert (seen["options"]["temperature"], seen["options"]["num_predict"]) == (1, 50)
    form = schema({"a": {"type": "string"}})
    _, seen = await sent(run, template="fixed", messages=[], response_format=form)
    assert seen["format"]["required"] == ["a"]
    _, seen = await sent(run, template="fixed", messages=[])
    assert seen["format"]["required"] == ["time"]


async def test_the_callers_system_message_comes_before_the_question(run: Running) -> None:
    rhyme = [{"role": "system", "content": "Rhyme."}]
    messages, _ = await sent(run, model="template:greet@1", messages=[*rhyme, *user("Ana"), *rhyme])
    instructions = [("system", "Be kind."), ("system", "Rhyme.")]
    assert messages == [*instructions, ("user", "Greet Ana 1 times."), ("system", "Rhyme.")]
    messages, _ = await sent(run, model="template:greet", messages=[*rhyme, *user("Ana")])
    assert messages == [("system", "Rhyme."), ("user", "Hail Ana!")]


async def test_the_first_message_fills_the_input_variable_and_later_turns_follow(run: Running) -> None:
    turns = [*user("Ana"), {"role": "assistant", "content": "Hello!"}, *user("Again.")]
    messages, _ = await sent(run, model="template:greet", messages=turns)
    assert messages == [("user", "Hail Ana!"), ("assistant", "Hello!"), ("user", "Again.")]
    _, seen = await sent(run, model="demo-vision", template="greet", messages=picture(data_url(), "Ana"))
    assert seen["messages"][0]["content"] == "Hail Ana!" and len(seen["messages"][0]["images"]) == 1


async def test_a_message_that_becomes_empty_is_left_out(run: Running) -> None:
    messages, _ = await sent(run, template="maybe", messages=user("Hi"))
    assert messages == [("user", "Hi")]
    messages, _ = await sent(run, template={"name": "maybe", "variables": {"a": "x"}}, messages=[])
    assert messages == [("system", "A")]
    error = await error_of(await run.chat(template="maybe", messages=[]), 400)
    assert (error["param"], error["code"]) == ("template.variables", "invalid_template_variables")


@pytest.mark.parametrize(
    ("version", "text"),
    [(None, "Hail"), (2, "Hail"), ("2", "Hail"), ("latest", "Hail"), (1, "Greet"), ("production", "Greet")],
)
async def test_versions_and_aliases(run: Running, version: Any, text: str) -> None:
    messages, _ = await sent(run, template=greet(version, who="Ana"), messages=[])
    assert messages[-1][1].startswith(text)


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"template": "nope"}, 404, "template.name", "template_not_found"),
        ({"model": "template:nope"}, 404, "model", "template_not_found"),
        ({"model": "template:"}, 400, "model", "empty_string"),
        ({"template": {"name": "greet", "version": 9}}, 404, "template.version", "template_version_not_found"),
        ({"model": "template:greet@staging"}, 404, "model", "template_version_not_found"),
        ({"template": {"name": "greet", "version": 0}}, 400, "template.version", "invalid_value"),
        ({"template": {"name": "greet", "version": [1]}}, 400, "template.version", "invalid_value"),
        ({"template": 3}, 400, "template", "invalid_type"),
        ({"template": {}}, 400, "template.name", "missing_required_parameter"),
        ({"template": {"name": ""}}, 400, "template.name", "empty_string"),
        ({"template": {"name": 3}}, 400, "template.name", "invalid_type"),
        ({"template": {"name": "greet", "variables": []}}, 400, "template.variables", "invalid_type"),
        ({"template": {"name": "greet", "colour": 1}}, 400, "template.colour", "unknown_parameter"),
        ({"template": greet(1, times=0)}, 400, "template.variables", "invalid_template_variables"),
        ({"template": greet(who="x" * 1_000_001)}, 400, "template.variables", "template_too_long"),
        ({"model": "template:greet", "template": "fixed"}, 400, "template.name", "invalid_parameter_combination"),
    ],
)
async def test_an_invalid_field_is_named_in_the_error(
    run: Running, body: Any, status: int, param: str, code: str
) -> None:
    messages = [] if "model" not in body and body["template"] else user("Ana")
    error = await error_of(await run.chat(messages=[*messages, {"role": "system", "content": "x"}], **body), status)
    assert (error["param"], error["code"]) == (param, code)


async def test_without_a_template_messages_are_required_and_unchanged(run: Running) -> None:
    for body in ({}, {"template": None}, {"use_cache": False}):
        assert (await error_of(await run.chat(messages=[], **body), 400))["code"] == "empty_array"
    response = await run.chat()
    assert response.status == 200 and "x-gemmapy-template" not in response.headers
    response = await run.http.post(
        f"{run.url}/v1/completions", json={"model": "demo", "prompt": "x", "template": "greet"}
    )
    assert (await error_of(response, 400))["code"] == "template_not_for_this"


async def test_a_template_without_an_input_variable_needs_no_messages(run: Running) -> None:
    for model in ("template:fixed", "template:fixed@1"):
        ((role, text),), _ = await sent(run, model=model, messages=[])
        assert role == "user" and text.startswith("Say the time.")
    error = await error_of(await run.chat(model="template:greet", messages=[]), 400)
    assert (error["param"], error["code"]) == ("template.variables", "invalid_template_variables")
    assert (await error_of(await run.chat(model="experiment:fixed", messages=[]), 400))["code"] == "empty_array"


async def test_templates_work_in_ollamas_dialect_and_with_the_cache(run: Running) -> None:
    body = {"model": "template:greet@1", "messages": user("Ana"), "stream": False}
    answer = await (await run.http.post(f"{run.url}/api/chat", json=body)).json()
    assert "Greet Ana 1 times." in answer["message"]["content"]
    await run.settled()
    response = await run.chat(model="demo-rendered", template=greet("production", who="Ana"), messages=[])
    assert (response.headers["x-gemmapy-cache"], response.headers["x-gemmapy-template"]) == ("hit", "greet@1")
    response = await run.chat(model="demo-rendered", template=greet("production", who="Bo"), messages=[])
    assert response.headers["x-gemmapy-cache"] == "miss"


async def test_render_returns_the_messages_or_sends_them(run: Running) -> None:
    async def render(**body: Any) -> Any:
        return await run.http.post(f"{run.url}/api/templates/render", json=body)

    told = await whole(await render(template_name="greet", version=1, variables={"who": "Ana", "times": "2"}))
    assert told["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Greet Ana 2 times."},
    ]
    assert told["prompt"] == "Be kind.\n\nGreet Ana 2 times." and told["version"] == 1
    assert (told["model"], told["parameters"]) == ("demo-rendered", {"temperature": 0.5, "max_tokens": 50})
    told = await whole(await render(name="fixed", model="other"))
    assert told["response_format"]["type"] == "json_schema" and told["model"] == "other"
    assert (await whole(await render(name="fixed")))["model"] == "demo"
    response = await render(name="greet", version="production", variables={"who": "Ana"}, generate=True)
    assert "Greet Ana 1 times." in (await whole(response))["choices"][0]["message"]["content"]
    assert response.headers["x-gemmapy-template"] == "greet@1"
    response = await render(name="greet", variables={"who": "Ana"}, generate=True, stream=True)
    assert (await response.text()).endswith("data: [DONE]\n\n")
    for body, param, status in (
        ({}, "name", 400),
        ({"name": "greet"}, "variables", 400),
        ({"name": "greet", "generate": True}, "variables", 400),
        ({"name": "nope"}, "name", 404),
        ({"name": "greet", "version": -1}, "version", 400),
        ({"name": "greet", "generate": "yes"}, "generate", 400),
    ):
        assert (await error_of(await render(**body), status))["param"] == param


async def test_render_with_a_call_takes_the_headers_of_any_chat(run: Running) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    head = {"traceparent": trace, "Cache-Control": "no-store"}
    body = {"name": "greet", "variables": {"who": "Ana"}, "generate": True}
    response = await run.http.post(f"{run.url}/api/templates/render", json=body, headers=head)
    assert response.headers["x-gemmapy-cache"] == "bypass"
    seen = upstream_headers(run)
    assert (seen["traceparent"], seen["x-request-id"]) == (trace, response.headers["x-request-id"])


async def test_templates_are_listed_page_by_page(run: Running) -> None:
    async def get(path: str) -> Any:
        return await whole(await run.http.get(f"{run.url}/api/templates{path}"))

    names: list[str] = []
    page = {"has_more": True}
    while page["has_more"]:
        page = await get(f"?limit=30&after={names[-1]}" if names else "?limit=30")
        names += [one["name"] for one in page["templates"]]
    assert names == sorted(set(names)) and {"greet", "fixed", "summarize"} <= set(names) and len(names) >= 62
    found = (await get("?search=INVOICE"))["templates"]
    assert [one["name"] for one in found] == ["extract_invoice"]
    counts = {one["name"]: one["templates"] for one in (await get("/categories"))["categories"]}
    assert counts["other"] == 3 and sum(counts.values()) == len(names)
    assert len((await get("?category=code"))["templates"]) == counts["code"]
    one = await get("/greet?version=production")
    assert (one["version"], one["source"], one["input"]) == (1, "library", "who")
    assert one["messages"][1]["content"] == "Greet {{who}} {{times}} times." and one["variables"] == {
        "who": {"type": "string", "required": True, "description": "Whom."},
        "times": {"type": "integer", "required": False, "default": 1, "minimum": 1},
    }
    versions = await get("/greet/versions")
    assert [one["version"] for one in versions["versions"]] == [2, 1]
    assert versions["aliases"] == {"production": 1, "latest": 2}
    for path, status, param in (("?limit=0", 400, "limit"), ("?colour=x", 400, "colour"), ("/nope", 404, "name")):
        assert (await error_of(await run.http.get(f"{run.url}/api/templates{path}"), status))["param"] == param


async def test_the_folder_is_reloaded_and_an_invalid_one_changes_nothing(run: Running, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("name: greet\ntemplate: Howdy.\n")
    await run.server.reload()
    messages, _ = await sent(run, template="greet", messages=[])
    assert messages == [("user", "Howdy.")]
    (tmp_path / "own.yaml").write_text("name: greet\n")
    await run.server.reload()
    messages, _ = await sent(run, template="greet", messages=[])
    assert messages == [("user", "Howdy.")]


async def test_a_template_gives_no_access_to_a_model_that_the_key_may_not_use(start: Start, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN)
    text = (
        f"plugins: {{templates: {{path: '{tmp_path}', model: demo, custom: false}}}}\n"
        "chains: {chat: [templates], completions: []}\n"
        "keys: {ann: {key: a-key, models: [demo]}}\n"
    )
    headers = {"Authorization": "Bearer a-key"}
    async with start(text) as run:
        asked: list[tuple[dict[str, Any], int]] = [
            ({"model": "template:greet@1"}, 403),
            ({"model": "template:greet"}, 200),
            ({"model": "demo-rendered", "template": "greet"}, 403),
            ({"model": "demo", "template": "greet"}, 200),
        ]
        for body, status in asked:
            response = await run.http.post(
                f"{run.url}/v1/chat/completions", json={"messages": user("Ana"), **body}, headers=headers
            )
            assert response.status == status, body
        body = {"name": "greet", "version": 1, "variables": {"who": "x"}, "generate": True}
        response = await run.http.post(f"{run.url}/api/templates/render", json=body, headers=headers)
        assert (await error_of(response, 403))["code"] == "model_not_allowed"
        response = await run.http.post(
            f"{run.url}/v1/completions", json={"model": "template:greet", "prompt": "x"}, headers=headers
        )
        assert (await error_of(response, 403))["code"] == "model_not_allowed", "no templates in this chain"
        assert (await run.http.get(f"{run.url}/api/templates")).status == 401


async def test_a_template_without_any_model_is_a_clear_error(start: Start) -> None:
    async with start("plugins: {templates: {custom: false}}\nchains: {chat: [templates]}\n") as run:
        error = await error_of(await run.chat(model="template:summarize"), 400)
        assert (error["param"], error["code"]) == ("model", "template_without_model")


async def test_the_record_of_a_call_names_its_template(start: Start, tmp_path: Path) -> None:
    text = (
        f"database: {{url: 'sqlite:///{tmp_path}/r.db'}}\nplugins: {{usage: {{}}, templates: {{model: demo}}}}\n"
        "chains: {chat: [usage, templates]}\n"
    )
    async with start(text) as run:
        await whole(await run.chat(model="template:summarize"))
        failed = await run.chat(model="nobody-has-it", template={"name": "summarize", "version": 1})
        assert failed.headers["x-gemmapy-template"] == "summarize@1" and failed.status == 404
        await whole(await run.chat())
        await writer_of(run).flush()
        found = await rows(writer_of(run).database, CALLS)
    assert [json.loads(one["tags"])["template"] if one["tags"] else "" for one in found] == ["summarize@1"] * 2 + [""]
    assert (found[0]["asked"], found[0]["model"]) == ("template:summarize", "demo:latest")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("plugins: {templates: {}, cache: {}}\nchains: {chat: [cache, templates]}\n", "must come before 'cache'"),
        ("plugins: {templates: {}, retry: {}}\nchains: {chat: [retry, templates]}\n", "must come before 'retry'"),
        ("plugins: {templates: {pathh: x}}\nchains: {chat: []}\n", "did you mean 'path'?"),
    ],
)
def test_an_invalid_configuration_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")):
        configuration.read("proxy.yaml", text, registry.problems_of, {})


async def test_an_invalid_folder_is_a_configuration_error(start: Start, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("name: x\n")
    with pytest.raises(
        ConfigError, match=r"proxy.yaml:\d+: plugins.templates: .*x.yaml:1: messages: this field is req"
    ):
        async with start(f"plugins: {{templates: {{path: '{tmp_path}'}}}}\nchains: {{chat: [templates]}}\n"):
            pass
