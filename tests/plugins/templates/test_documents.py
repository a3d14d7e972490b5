"""Templates as files: what is refused, with its line, and which values a variable accepts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plugins.templates import library, yamltext
from plugins.templates.document import Document, content_of
from plugins.templates.lint import warnings
from plugins.templates.template import Template
from plugins.templates.variables import Variable, Wrong, fill
from proxy.errors import BadCall, ConfigError
from proxy.types import JSON, Chat, Message

LABELS = {"type": "list", "optional": True}


def document(text: str = "{{a}}", **fields: Any) -> Document:
    return Document.model_validate({"name": "t", "template": text, "variables": ["a"], **fields})


@pytest.mark.parametrize(
    ("variable", "given", "value"),
    [
        ({}, "x", "x"),
        ({}, {"type": "input_text", "text": "x"}, "x"),
        ({"type": "integer"}, 3, 3),
        ({"type": "integer"}, "3", 3),
        ({"type": "integer"}, 3.0, 3),
        ({"type": "number"}, "2.5e1", 25.0),
        ({"type": "number"}, 2, 2),
        ({"type": "boolean"}, False, False),
        ({"type": "boolean"}, "True", True),
        ({"type": "enum", "values": ["a", "b"]}, "b", "b"),
        ({"type": "list"}, ["x", "{{y}}"], ("x", "{{y}}")),
        ({"type": "list", "items": "integer"}, [1, "2"], (1, 2)),
    ],
)
def test_values_that_a_variable_accepts(variable: Any, given: JSON, value: object) -> None:
    made = Variable.model_validate(variable).read(given)
    assert made == value and type(made) is type(value)


@pytest.mark.parametrize(
    ("variable", "given", "says"),
    [
        ({}, 3, "must be a string, but is an integer"),
        ({}, True, "must be a string, but is a boolean"),
        ({}, {"type": "input_image"}, "must be a string, but is an object"),
        ({"type": "list", "min_items": 2}, ["x"], "must have at least 2 items, but has 1"),
        ({"min_length": 2}, "x", "must have at least 2 characters, but has 1"),
        ({"max_length": 2}, "xxx", "must have at most 2 characters, but has 3"),
        ({"type": "integer"}, True, "must be an integer, but is a boolean"),
        ({"type": "integer"}, 3.5, "must be an integer, but is a number"),
        ({"type": "integer"}, "3.5", "must be an integer, but is a string"),
        ({"type": "integer"}, "9" * 30, "must be an integer, but is a string"),
        ({"type": "integer"}, 10**400, "must be a smaller number"),
        ({"type": "integer", "minimum": 1}, 0, "must be at least 1, but is 0"),
        ({"type": "number", "maximum": 1.5}, "2", "must be at most 1.5, but is 2"),
        ({"type": "number"}, float("nan"), "must be a number"),
        ({"type": "number"}, "1e999", "must be a number"),
        ({"type": "boolean"}, 1, "must be a boolean, but is an integer"),
        ({"type": "enum", "values": ["a"]}, "b", "must be one of 'a', but is 'b'"),
        ({"type": "enum", "values": ["a"]}, ["a"], "must be one of 'a', but is an array"),
        ({"type": "list"}, "x", "must be a list, but is a string"),
        ({"type": "list", "max_items": 1}, ["a", "b"], "must have at most 1 items, but has 2"),
        ({"type": "list", "items": "integer", "maximum": 5}, [1, 9], "has an item, [1], that must be at most 5"),
    ],
)
def test_values_that_a_variable_refuses(variable: Any, given: JSON, says: str) -> None:
    with pytest.raises(Wrong, match=re.escape(says)):
        Variable.model_validate(variable).read(given)


def test_all_problems_are_reported_together() -> None:
    template = Template(document("{{a}}{{b}}", variables={"a": {"description": "Who."}, "b": {"type": "integer"}}))
    with pytest.raises(BadCall) as caught:
        template.messages({"b": "x", "c": 1, "d": 2}, 100)
    said = str(caught.value)
    assert (caught.value.param, caught.value.code) == ("template.variables", "invalid_template_variables")
    for part in ("'a' is missing (Who)", "'b' must be an integer", "'c' is no variable of it", "'d' is no variable"):
        assert part in said
    many = {f"v{n}": 1 for n in range(1000)}
    assert len(fill({}, many)[1]) == 1000
    with pytest.raises(BadCall, match="and 98"):
        template.messages(many, 100)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": "Upper"}, "cannot be a name"),
        ({"name": "render"}, "cannot be a name"),
        ({"name": "tpl_1"}, "cannot be a name"),
        ({"version": 0}, "greater than 0"),
        ({"aliases": ["latest"]}, "cannot be an alias"),
        ({"aliases": ["1"]}, "cannot be an alias"),
        ({"template": "{{a}} {{b}}"}, "messages[0]: 'b' is not under variables"),
        ({"template": "{{a"}, "messages[0]: line 1"),
        ({"messages": []}, "at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "'system', 'user' or 'assistant'"),
        ({"parameters": {"heat": 1}}, "parameters.heat is not one of temperature"),
        ({"parameters": {"temperature": 9}}, "above the maximum"),
        ({"schema": {"type": 3}}, "schema"),
        ({"schema": {"$ref": "https://example.com/x"}}, "does not point into the schema"),
        ({"input": "b"}, "input: 'b' is no variable"),
        ({"variables": {"a": {"type": "integer"}}, "input": "a"}, "no variable of type 'string'"),
        ({"variables": {"a": {"type": "integer", "default": "x"}}}, "its default must be an integer"),
        ({"variables": {"a": {"type": "enum"}}}, "an enum needs 'values'"),
        ({"variables": {"a": {"minimum": 3}}}, "'minimum' is no limit of a variable of type 'string'"),
        ({"variables": {"a b": {}}}, "should match pattern"),
        ({"example": {"b": 1}}, "example: 'a' is missing"),
        ({"colour": 1}, "Extra inputs"),
        ({"model": "template:t"}, "`model` is the name of a model"),
        ({"template": "x" * 70_000}, "at most 65536 bytes"),
        (
            {"template": "{{#a}}{{#b}}{{/b}}{{/a}}", "variables": {"a": {"type": "list"}, "b": {"type": "list"}}},
            "of a list is nested in another list's",
        ),
    ],
)
def test_an_invalid_template_is_refused(fields: dict[str, Any], says: str) -> None:
    text = {} if "messages" in fields else {"template": "{{a}}"}
    given: dict[str, Any] = {"name": "t", **text, "variables": ["a"], **fields}
    with pytest.raises(ValueError, match=re.escape(says)):
        Document.model_validate(given)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: t\ntemplate: x\ncolour: red\n", "f.yaml:3: colour: there is no such field"),
        ("name: t\n", "f.yaml:1: messages: this field is required"),
        ("templates:\n- name: t\n  template: x\n- name: T\n  template: x\n", "f.yaml:4: name: 'T' cannot be a name"),
        ("name: t\nname: u\n", "line 2: name: this key occurs twice"),
        ("name: [", "f.yaml:2: not YAML"),
        ("a: &a [x, x]\nb: *a\n", "line 2: references (*a) are not supported"),
        ("[" * 100, "nested more than 64 levels"),
        ("name: t\ntemplate: x\nvariables:\n  a: {type: number, minimum: lots}\n", "f.yaml:4: variables.a.minimum"),
        ("name: !!python/object/apply:os.system [x]", "f.yaml:1: not YAML"),
        ("- 3\n", "f.yaml:1: the template"),
        ("- {name: t, template: x}\n" * 1001, "more than 1000 templates"),
        ("x" * (4 * 1024 * 1024 + 1), "longer than 4194304 characters"),
    ],
)
def test_an_invalid_file_is_an_error_with_its_line(text: str, says: str) -> None:
    with pytest.raises(yamltext.Unreadable, match=re.escape(says)):
        yamltext.read("f.yaml", text)


def test_text_stays_text_and_survives_writing_and_reading() -> None:
    text = "name: t\ntemplate: '{{a}}'\nvariables: {a: {type: enum, values: [yes, no, 2024-01-01]}}\n"
    with pytest.raises(yamltext.Unreadable):  # 2024-01-01 is text here, 3 is not
        yamltext.read("f.yaml", text.replace("2024-01-01", "3"))
    documents = yamltext.read("f.yaml", text)
    assert documents[0].variables["a"].values == ("yes", "no", "2024-01-01")
    again = yamltext.read("f.yaml", yamltext.write([one.as_json() for one in documents]))
    assert again == documents


def test_a_folder_is_read_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "a.yaml").write_text("name: a\naliases: [production]\ntemplate: one\n")
    (tmp_path / "in" / "b.yml").write_text("- {name: a, version: 2, template: two}\n- {name: b, template: three}\n")
    (tmp_path / "readme.md").write_text("{")
    made = library.Library(library.read(tmp_path))
    assert set(made.names) == {"a", "b"} and made.aliases_of("a") == {"production": 1, "latest": 2}
    versions = [None, "latest", 1, "production", 2, 3, "staging"]
    found = [made.find("a", version) for version in versions]
    assert [one and one.document.version for one in found] == [2, 2, 1, 1, 2, None, None]
    with pytest.raises(ConfigError, match="two templates a@1"):
        library.Library(library.read(tmp_path) * 2)
    (tmp_path / "c.yaml").write_text("name: c\n")
    (tmp_path / "d.yaml").write_bytes(b"\xff")
    with pytest.raises(ConfigError) as caught:
        library.read(tmp_path)
    assert len(caught.value.problems) == 2 and "c.yaml:1: messages" in caught.value.problems[0]
    with pytest.raises(ConfigError, match="there is no folder"):
        library.read(tmp_path / "nowhere")


def test_only_files_that_changed_are_read_again(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\ntemplate: one\n")
    (tmp_path / "b.yaml").write_text("- {name: b, template: two}\n- {name: c, template: three}\n")
    files = library.Files()
    first = files.read(tmp_path)
    (tmp_path / "a.yaml").write_text("name: other\ntemplate: one\n")
    second = files.read(tmp_path)
    assert [one.name for one in second] == ["other", "b", "c"] and second[1] is first[1], (
        "unchanged files are not read again"
    )
    (tmp_path / "a.yaml").unlink()
    assert files.read(tmp_path) == second[1:] and len(files.known) == 1


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"variables": {"a": {}, "b": {"default": "x"}}}, "the variable 'b' is used nowhere"),
        ({"description": ""}, "it has no description"),
        ({"example": {}}, "it has no example"),
        ({"text": "<a>{{a}}</a>" + "stable " * 50}, "353 letters that never change stand behind 'a'"),
        ({"text": "Do this: {{a}}"}, "nothing sets 'a' apart"),
        ({"text": ">{{a}}", "variables": {"a": {"optional": True}}}, "'a' is optional and stands outside of a section"),
        ({"text": "<a>{{a}}</a> {a}"}, "'{a}' is text; the variable is '{{a}}'"),
    ],
)
def test_probable_mistakes_cause_warnings(fields: dict[str, Any], says: str) -> None:
    good: dict[str, Any] = {"text": "stable " * 50 + "<a>{{a}}</a>", "description": "x", "example": {"a": "x"}}
    assert list(warnings(document(**good))) == []
    found = list(warnings(document(**{**good, **fields})))
    assert any(says in one for one in found), found


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=80),
    st.lists(st.sampled_from(["yes", "1", "", " a\n", "~"])),
)
@example("\x85", [])
@example("a\nb\u2028c\u2029", ["yes"])
@settings(max_examples=60, deadline=None)
def test_any_text_survives_yaml(words: str, values: list[str]) -> None:
    one = document(
        words.replace("{", "(").replace("\\", "/") + "{{a}}",
        description=words,
        variables={"a": {"type": "enum", "values": ["x", *values, words]}},
    )
    assert yamltext.read("f.yaml", yamltext.write([one.as_json(), one.as_json()])) == [one, one]


def test_the_size_limit_does_not_depend_on_version_and_aliases() -> None:
    bare = len(content_of(document("x" * 1000, variables={}).as_json()))
    largest = document("x" * (1000 + 65_536 - bare), variables={})
    assert Document.model_validate({**largest.as_json(), "version": 10**6, "aliases": ["production"]}).version == 10**6
    with pytest.raises(ValueError, match="at most 65536 bytes"):
        document("x" * (1001 + 65_536 - bare), variables={})


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("example: {a: 123456789012345678901234567890}", "is no number that is taken here"),
        ("parameters: {seed: 123456789012345678901234567890}", "is no number that is taken here"),
        ("parameters: {temperature: .nan}", "nan is no number that is taken here"),
        ("schema: {const: .inf}", "inf is no number that is taken here"),
        ("example: {a: !!binary aGVsbG8=}", "JSON has no values of the kind 'bytes'"),
        ("example: {a: !!set {x, y}}", "JSON has no values of the kind 'set'"),
        ("example: {a: {1: x}}", "the key 1 is no text; put it in quotation marks"),
    ],
)
def test_yaml_values_that_json_does_not_have_are_refused(written: str, says: str) -> None:
    with pytest.raises(yamltext.Unreadable, match=re.escape(says)):
        yamltext.read("x.yaml", f"name: t\ntemplate: '{{{{a}}}}'\nvariables: [a]\n{written}\n")


def test_follow_up_problems_are_not_reported() -> None:
    with pytest.raises(yamltext.Unreadable) as raised:
        yamltext.read("x.yaml", "name: t\nmessages: [{role: tool, content: x}]\n")
    assert len(raised.value.problems) == 1 and "messages.0.role" in raised.value.problems[0]


def test_a_million_unknown_variables_are_refused_with_little_memory() -> None:
    given = dict.fromkeys(map(str, range(100_000)), 1)
    _, problems = fill({name: Variable() for name in ("a", "b" * 60)}, given)
    assert sum(map(len, problems)) < 10_000
    with pytest.raises(BadCall, match=r"'0' is no variable of it \(there are: 'a'\).*and 99980 more"):
        Template(document()).messages({"a": "x", **given}, 100)


@pytest.mark.parametrize(
    ("given", "messages", "question"),
    [
        ({}, ["Ana", "and Bo?"], "and Bo?"),
        ({}, ["Ana"], "Ana"),
        ({"a": "Ana"}, [], "Ana"),
        ({"a": "Ana"}, ["hello"], "hello"),
    ],
)
def test_the_question_is_the_callers_last_message(given: Any, messages: list[str], question: str) -> None:
    chat = Chat(tuple(Message("user", text) for text in messages))
    asked = Template(document("Greet {{a}}.", input="a")).asked(chat, given, 100)
    assert asked.question == question and asked.messages[0].text == "Greet Ana."


def test_an_enum_in_the_schema_is_filled_from_a_list() -> None:
    inside = {"anyOf": [{"enum": ["{{labels}}"]}, {"type": "null"}]}
    schema = {
        "type": "object",
        "properties": {"enum": {"enum": ["{{labels}}"]}, "b": inside, "c": {"enum": ["{{x}} y"]}},
    }
    made = Template(document("{{#labels}}{{.}}{{/labels}}", variables={"labels": LABELS}, schema=schema))
    form = made.asked(Chat(()), {"labels": ["a", "b", "a"]}, 100).format
    assert form is not None and form.schema == {
        "type": "object",
        "properties": {
            "enum": {"enum": ["a", "b"]},
            "b": {"anyOf": [{"enum": ["a", "b"]}, {"type": "null"}]},
            "c": {"enum": ["{{x}} y"]},
        },
    }
    form = made.asked(Chat((Message("user", "x"),)), {}, 100).format
    assert form is not None and form.schema is not None
    assert form.schema["properties"]["enum"] == {}, "nothing to choose from"
    assert list(warnings(document("x", variables={"labels": LABELS}, schema=schema, description="D.", example={}))) == [
        "it has no example"
    ]
    with pytest.raises(ValueError, match="an enum of 'a', which is no variable of type 'list'"):
        document(schema={"enum": ["{{ a }}"]})
    many = [str(number) for number in range(30_000)]
    with pytest.raises(BadCall) as raised:
        made.asked(Chat(()), {"labels": many}, 1_000_000)
    assert raised.value.param == "template.variables"


def test_items_are_numbered_within_their_list() -> None:
    variables = {"l": LABELS, "x": {"optional": True}}
    made = Template(document("{{#l}}{{#x}}{{@number}}{{/x}}{{^x}}-{{@number}}{{/x}}{{.}} {{/l}}", variables=variables))
    assert made.messages({"l": ["a", "b"], "x": "y"}, 100)[0].text == "1a 2b "
    assert made.messages({"l": ["a", "b"]}, 100)[0].text == "-1a -2b "
    for text in ("{{@number}}", "{{#x}}{{@number}}{{/x}}", "{{^l}}{{@number}}{{/l}}"):
        with pytest.raises(ValueError, match="there is no section of a list around it"):
            document(text, variables=variables)
    with pytest.raises(ValueError, match="is not a tag"):
        document("{{#l}}{{#@number}}{{/@number}}{{/l}}", variables=variables)
