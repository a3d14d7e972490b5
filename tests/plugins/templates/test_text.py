"""The template language: rendering, errors, linear time and bounded size."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.templates.document import Document
from plugins.templates.template import Template
from plugins.templates.text import Malformed, Page, TooLong, Value, parse, render
from proxy.errors import BadCall

VALUES: dict[str, Value] = {
    "name": "Ana", "n": 0, "yes": True, "no": False, "none": None, "empty": "", "list": ("a", "b"), "bare": (),
    "x": 1.5, "trick": "{{name}} {{#list}}",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello {{name}}!", "Hello Ana!"),
        ("{{ name }}{{n}}{{x}}", "Ana01.5"),
        ("{{trick}}", "{{name}} {{#list}}"),
        ("{{#name}}{{.}}{{/name}}", "Ana"),
        ("{{#list}}[{{.}}]{{/list}}", "[a][b]"),
        ("{{#list}}{{name}}{{/list}}", "AnaAna"),
        ("{{list}}", "a, b"),
        ("{{#n}}zero counts{{/n}}", "zero counts"),
        ("{{#yes}}1{{/yes}}{{#no}}2{{/no}}{{#none}}3{{/none}}{{#empty}}4{{/empty}}{{#bare}}5{{/bare}}", "1"),
        ("{{^yes}}1{{/yes}}{{^no}}2{{/no}}{{^none}}3{{/none}}{{^empty}}4{{/empty}}{{^bare}}5{{/bare}}", "2345"),
        ("{{#list}}{{^none}}{{.}}{{/none}}{{/list}}", "ab"),
        ("{{yes}} {{no}} {{none}}", "true false "),
        ("a{{! not told }}b", "ab"),
        ("{ {name} } }}", "{ {name} } }}"),
        ("\\{{name}}", "{{name}}"),
        ("\\\\{{name}}", "\\Ana"),
        ("\\\\\\{{name}}", "\\{{name}}"),
        ("C:\\x", "C:\\x"),
        ('{"a": "{{name}}"}', '{"a": "Ana"}'),
        ("1\n{{#yes}}\n2\n{{/yes}}\n3", "1\n2\n3"),
        ("1\n  {{! alone }}  \n2", "1\n2"),
        ("1\n{{#no}}\n2\n{{/no}}", "1\n"),
        ("{{#list}}\n- {{.}}\n{{/list}}\nend", "- a\n- b\nend"),
        ("a {{#yes}}\nb{{/yes}}", "a \nb"),
        ("{{name}}\n", "Ana\n"),
        ("", ""),
    ],
)
def test_rendering(text: str, expected: str) -> None:
    assert render(parse(text), VALUES, Page(1000)) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\n{{name", "line 2: '{{' is not closed"),
        ("a\n\n{{na me}}", "line 3: '{{na me}}' is not a tag"),
        ("{{#a}}x", "line 1: the section 'a' is not closed"),
        ("{{#a}}\n{{#b}}{{/a}}{{/b}}", "line 2: {{/a}} closes no section; the one under way is 'b'"),
        ("{{/a}}", "closes no section"),
        ("{{#a}}{{#a}}{{/a}}{{/a}}", "is nested in itself"),
        ("{{.}}", "there is no section around it"),
        ("{{^a}}{{.}}{{/a}}", "there is no section around it"),
        ("{{{a}}}", "is not a tag"),
        ("{{>a}}", "is not a tag"),
        ("{{&a}}", "is not a tag"),
        ("{{=<% %>=}}", "is not a tag"),
        ("{{a.b}}", "is not a tag"),
        ("{{a.__class__}}", "is not a tag"),
        ("{{}}", "is not a tag"),
        ("{{" + "a" * 65 + "}}", "is not a tag"),
        ("".join(f"{{{{#s{n}}}}}" for n in range(10)), "more than 8 nested sections"),
    ],
)
def test_invalid_templates(text: str, says: str) -> None:
    with pytest.raises(Malformed, match=re.escape(says)):
        parse(text)


@given(st.text(), st.text())
@settings(max_examples=100, deadline=None)
def test_a_value_is_rendered_unchanged(before: str, value: str) -> None:
    text = before.replace("{{", "{ {").replace("\\", "/") + "|{{v}}|"
    assert render(parse(text), {"v": value}, Page(10_000)) == text.removesuffix("{{v}}|") + value + "|"


@given(st.text(alphabet="{}#^/!.\\ \nab", max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        nodes = parse(text)
    except Malformed:
        return
    render(nodes, {"a": ("x", "y"), "b": "z"}, Page(10_000))


def test_rendering_stops_at_its_size_limit() -> None:
    many = ("x",) * 300_000
    for text in ("{{#l}}{{big}}{{/l}}", "{{#l}}" + "{{none}}" * 1000 + "{{/l}}", "{{#l}}{{/l}}"):
        with pytest.raises(TooLong):
            render(parse(text), {"l": many, "big": "y" * 100_000, "none": None}, Page(50_000))
    assert len(render(parse("{{big}}"), {"big": "y" * 1000}, Page(1000))) == 1000


@pytest.mark.parametrize("piece", ["\\{{", "{{a}} ", "{{#a}}{{/a}}", " \t", "\n {{! c }} \n", "{{!{{ }}", "\\\\"])
def test_parsing_takes_linear_time(piece: str) -> None:
    def seconds(times: int) -> float:
        text = piece * times
        began = time.thread_time()
        parse(text)
        return time.thread_time() - began

    small, large = min(seconds(1_000) for _ in range(3)), min(seconds(10_000) for _ in range(3))
    assert large < 60 * small + 0.05, "ten times the text may take ten times as long, not a hundred times"


def test_all_messages_of_a_template_share_one_size_limit() -> None:
    """Each message alone would be within the limit, but rendering all would block the server many times as long."""
    said = [{"content": "{{#l}}{{/l}}x"}] * 3
    template = Template(Document.model_validate({"name": "t", "variables": {"l": {"type": "list"}}, "messages": said}))
    assert [one.text for one in template.messages({"l": [""] * 10_000}, 100)] == ["x"] * 3
    for items, most in ((80_000, 100), (10, 2)):
        with pytest.raises(BadCall, match="would become longer"):
            template.messages({"l": [""] * items}, most)
