"""Which model answers for a template that names none, and templates in the lists of models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ollama
import pytest
import yaml

from plugins.templates.models import first
from proxy.models import ModelInfo
from tests.conftest import Running, Start
from tests.test_docs import ROOT
from tests.whole.asking import error_of, user, whole

OWN = """
templates:
  - {name: greet, variables: {who: {}}, input: who, template: "Greet {{who}}.", model: demo-rendered}
  - {name: greets, variables: {who: {}, how: {}}, input: who, template: "Greet {{who}} {{how}}."}
  - {name: lost, template: Say the time., model: nobody-has-it}
"""
KEYS = "keys: {ann: {key: a-key, models: ['demo-v*']}, bo: {key: b-key}, cy: {key: c-key, models: [demo]}}\n"
A, B, C = ({"Authorization": f"Bearer {key}-key"} for key in "abc")


def listing(tmp_path: Path, settings: str) -> str:
    (tmp_path / "own.yaml").write_text(OWN)
    return (
        f"database: {{url: 'sqlite:///{tmp_path}/t.db'}}\n"
        f"plugins: {{templates: {{path: '{tmp_path}', {settings}}}}}\nchains: {{chat: [templates]}}\n"
    )


async def ids(run: Running, headers: Mapping[str, str] | None = None) -> set[str]:
    found = await whole(await run.http.get(f"{run.url}/v1/models", headers=headers))
    return {one["id"].removeprefix("template:") for one in found["data"] if one["id"].startswith("template:")}


def named(name: str, *capabilities: str) -> ModelInfo:
    return ModelInfo(name, capabilities=frozenset(capabilities) if capabilities else None)


@pytest.mark.parametrize(
    ("listed", "name"),
    [
        (
            [named("b", "completion"), named("e", "embedding")]
            + [named(f"{name}:latest", "completion") for name in ("a-b", "a")],
            "a:latest",
        ),
        ([named("unknown"), named("a", "completion", "tools")], "a"),
        ([named("e", "embedding"), named("unknown"), named("more")], "more"),
        ([named("e", "embedding")], None),
        ([], None),
    ],
)
def test_the_first_model_that_can_chat(listed: list[ModelInfo], name: str | None) -> None:
    assert first(listed) == name


async def test_the_first_model_answers_if_configured(start: Start) -> None:
    text = f"plugins: {{templates: {{model: '*', custom: false}}}}\nchains: {{chat: [templates]}}\n{KEYS}"
    async with start(text) as run:
        body: dict[str, Any] = {"model": "template:summarize", "messages": user("x")}
        response = await run.http.post(f"{run.url}/v1/chat/completions", json=body, headers=B)
        assert response.status == 200 and response.headers["x-gemmapy-model"] == "demo:latest"
        response = await run.http.post(f"{run.url}/v1/chat/completions", json=body, headers=A)
        assert response.status == 200 and response.headers["x-gemmapy-model"] == "demo-vision:latest", (
            "the first model that the key may use"
        )
        rendering = {"name": "summarize", "variables": {"text": "x"}}
        told = await whole(await run.http.post(f"{run.url}/api/templates/render", json=rendering, headers=A))
        assert told["model"] == "demo-vision:latest"


async def test_no_template_is_listed_by_default(start: Start, tmp_path: Path) -> None:
    async with start(listing(tmp_path, "model: demo")) as run:
        assert await ids(run) == set()
        assert (await error_of(await run.http.get(f"{run.url}/v1/models/template:greet"), 404))["param"] == "model"


async def test_listed_templates_need_no_variables_and_have_their_models_details(start: Start, tmp_path: Path) -> None:
    text = listing(tmp_path, "model: demo, listed: ['gr*', lost, 'extract_i*', hail]") + KEYS
    async with start(text) as run:
        for name in ("hail", "hidden"):
            made = {"name": name, "template": "Hail!", "public": True}
            await whole(await run.http.post(f"{run.url}/api/templates/custom", json=made, headers=B))
        assert await ids(run, B) == {"greet", "grammar_explain", "extract_invoice", "hail"}
        assert await ids(run, A) == set(), "this key may not use their model"
        assert await ids(run, C) == {"grammar_explain", "extract_invoice"}, (
            "neither others' templates nor those of other models"
        )
        async with run.client(api_key="b-key") as client:
            one = await client.models.retrieve("template:greet")
            answer = await client.chat.completions.create(model=one.id, messages=[{"role": "user", "content": "Ana"}])
            assert "Greet Ana." in str(answer.choices[0].message.content)
        async with ollama.AsyncClient(host=run.url, headers=B) as native:
            entries = {str(entry.model): entry for entry in (await native.list()).models}
            assert entries["template:greet"].details is not None
            assert await native.show("template:greet") == await native.show("demo-rendered")


@pytest.mark.parametrize("name", ["proxy", "container", "demo"])
def test_the_packaged_configurations_set_the_model_of_templates(name: str) -> None:
    config = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())
    assert config["plugins"]["templates"]["model"]
