"""The templates of this package: each is valid, renders its example, and gets an answer that matches its schema."""

from __future__ import annotations

import json

import jsonschema_rs
import pytest

from plugins.templates import library
from plugins.templates.lint import warnings
from plugins.templates.template import Template
from tests.conftest import Start
from tests.whole.asking import whole

ALL = sorted(library.built_in().newest(), key=lambda one: one.document.name)
NAMES = [one.document.name for one in ALL]


def test_there_are_several_of_every_category() -> None:
    categories = {one.document.category for one in ALL}
    assert len(ALL) >= 60 and len(categories) >= 10
    assert {"summarize", "translate", "code_review", "explain_eli5"} <= set(NAMES)
    assert len([one for one in ALL if one.document.answer_schema]) >= 12
    assert {"text", "length"} <= set(library.built_in().names["summarize"][1].document.variables)


@pytest.mark.parametrize("template", ALL, ids=NAMES)
def test_each_has_a_description_and_is_valid(template: Template) -> None:
    document = template.document
    assert list(warnings(document)) == []
    assert document.description and document.example
    assert all(variable.description for variable in document.variables.values())
    assert document.messages[0].role == "system"
    as_given = {"code", "data", "safety", "extraction"}
    assert document.category in as_given or "anguage" in document.messages[0].content, (
        "it must name the language of the answer"
    )


@pytest.mark.parametrize("template", ALL, ids=NAMES)
def test_each_renders_its_example_without_unfilled_variables(template: Template) -> None:
    example = template.document.example
    said = "\n".join(one.text for one in template.messages(example, 1_000_000))
    for value in example.values():
        for one in value if isinstance(value, list) else [value]:
            assert str(one) in said
    literal = "\\{{" in "".join(turn.content for turn in template.document.messages)
    assert literal or "{{" not in said


def test_a_value_is_not_rendered_as_a_template() -> None:
    template = library.built_in().names["summarize"][1]
    said = template.messages({"text": "{{length}} {{#text}}"}, 10_000)
    assert "{{length}} {{#text}}" in said[-1].text


async def test_the_simulators_answer_matches_each_schema(start: Start) -> None:
    async with start("plugins: {templates: {model: demo, custom: false}}\nchains: {chat: [templates]}\n") as run:
        for template in ALL:
            document = template.document
            body = {"model": f"template:{document.name}", "template": {"variables": document.example}, "messages": []}
            response = await run.http.post(f"{run.url}/v1/chat/completions", json=body)
            answer = (await whole(response))["choices"][0]["message"]["content"]
            assert response.headers["x-gemmapy-template"] == f"{document.name}@1"
            if (form := template.format(template.filled(document.example))) is not None:
                assert form.schema is not None and "{{" not in str(form.schema)
                jsonschema_rs.validate(dict(form.schema), json.loads(answer))
                assert run.ollama.seen[-1].body["format"]["required"] == form.schema["required"]
