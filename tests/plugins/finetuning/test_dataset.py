"""Datasets of all formats are read into one form, and every invalid line is reported with its number."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from plugins.finetuning import dataset
from plugins.finetuning.dataset import SHOWN, Report, read_file
from tests.plugins.finetuning.asking import EXAMPLES, example, lines

ASKED, SAID = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def read(path: Path, data: bytes, name: str = "a.jsonl", least: int = 1) -> tuple[Report, list[Any]]:
    (path / "file").write_bytes(data)
    made = io.BytesIO()
    report = read_file(path / "file", name, least, made, lambda: False)
    return report, [json.loads(line) for line in made.getvalue().splitlines()]


def test_examples_and_tokens_are_counted(tmp_path: Path) -> None:
    long = {"messages": [ASKED, {"role": "assistant", "content": "word " * 100}]}
    report, made = read(tmp_path, b"\xef\xbb\xbf" + lines([example(1), long]) + b"\n\n" + lines([example(2)]))
    assert (report.examples, report.wrong, report.format, report.longest_line) == (3, 0, "jsonl", 2)
    assert report.longest == 8 + 126 and report.tokens > report.longest
    assert made == [example(1), long, example(2)]


def test_tools_weights_and_content_parts_are_normalised(tmp_path: Path) -> None:
    given = {
        "messages": [
            {"role": "developer", "content": "Add."},
            {"role": "user", "content": [{"type": "text", "text": "1"}, {"type": "text", "text": "2"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 0},
            {"role": "tool", "content": "3", "tool_call_id": "c1"},
            {"role": "assistant", "content": "3", "weight": 1},
        ],
        "tools": [TOOL],
        "parallel_tool_calls": False,
    }
    report, (made,) = read(tmp_path, lines([given]))
    assert report.problems == []
    assert [one["content"] for one in made["messages"]] == ["Add.", "1\n2", "", "3", "3"]
    assert made["messages"][0]["role"] == "system" and made["messages"][2]["tool_calls"] == [CALL]
    assert [one.get("weight") for one in made["messages"]] == [None, None, 0, None, 1]
    assert made["tools"][0]["function"]["name"] == "add" and made["parallel_tool_calls"] is False


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


PICTURE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
WRONG: list[tuple[Any, str]] = [
    ([1], "expected an object"),
    ({}, "'messages'"),
    (chat(), "the array is empty"),
    (chat(ASKED), "must be the assistant's"),
    (chat(SAID, ASKED), "must be the assistant's"),
    (chat(ASKED, {**SAID, "weight": 0}), "nothing to learn"),
    (chat(ASKED, {**SAID, "weight": 2}), "messages[1].weight"),
    (chat(ASKED, {**SAID, "weight": True}), "messages[1].weight"),
    (chat({**ASKED, "weight": 1}, SAID), "messages[0].weight"),
    (chat({"role": "robot", "content": "x"}, SAID), "messages[0].role"),
    (chat(ASKED, {"role": "assistant"}), "messages[1].content"),
    (chat({"role": "user", "content": [PICTURE]}, SAID), "no pictures"),
    (chat(ASKED, {"role": "tool", "content": "x", "tool_call_id": "c9"}, SAID), "no message before it"),
    (chat(ASKED, {**SAID, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{"}}]}), "arguments"),
    (chat(ASKED, SAID, tools=[{"type": "x"}]), "tools[0].type"),
    (chat(ASKED, SAID, functions=[]), "'functions'"),
    (chat({**ASKED, "mood": "glad"}, SAID), "messages[0].mood"),
    (chat(*[ASKED, SAID] * 1001), "more than 2000"),
    ({"prompt": "x"}, "'completion'"),
    ({"prompt": "", "completion": "y"}, "'prompt'"),
    ({"prompt": "x", "completion": "y", "z": 1}, "'z'"),
]


@pytest.mark.parametrize(("given", "why"), WRONG)
def test_an_invalid_line_has_an_explanation(tmp_path: Path, given: Any, why: str) -> None:
    report, made = read(tmp_path, lines([example(1), given, example(2)]))
    assert (report.examples, report.wrong, report.problems[0].line) == (2, 1, 2)
    assert why in report.problems[0].message and made == [example(1), example(2)]


@pytest.mark.parametrize(
    "line", [b"{", b"\xff\xfe{}", b'{"messages": NaN}', b"[" * 5000, b'{"prompt": "\\ud800"}', b"\0"]
)
def test_lines_that_are_not_json(tmp_path: Path, line: bytes) -> None:
    report, _ = read(tmp_path, line + b"\n" + lines([example(1)]))
    assert (report.examples, report.problems[0].line) == (1, 1) and "not JSON" in report.problems[0].message


def test_an_overlong_line_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "LONGEST", 200)
    report, made = read(tmp_path, b'{"x": "' + b"y" * 1000 + b'"}\n' + lines([example(1)]))
    assert [one.line for one in report.problems] == [1] and made == [example(1)]


def test_all_problems_are_counted_and_some_are_listed(tmp_path: Path) -> None:
    report, _ = read(tmp_path, b"{\n" * 300)
    assert (report.wrong, len(report.problems), report.problems[-1].line) == (300, SHOWN, SHOWN)


def test_too_few_examples(tmp_path: Path) -> None:
    report, _ = read(tmp_path, lines(EXAMPLES[:3]), least=10)
    assert [str(one) for one in report.problems] == ["There are 3 examples, and 10 is the least."]


def test_pairs(tmp_path: Path) -> None:
    _, made = read(tmp_path, lines([{"prompt": "Hi", "completion": "Hello"}]))
    assert made == [chat(ASKED, SAID)]


@pytest.mark.parametrize("head", ["prompt,completion", "Question;Answer;note", "input\toutput"])
def test_tables(tmp_path: Path, head: str) -> None:
    mark = next(one for one in ",;\t" if one in head)
    rows = [["Hi", "Hello"], ['"two\nlines"', "said"]]
    text = "\n".join([head, *(mark.join(row) + mark * (head.count(mark) - 1) for row in rows)])
    report, made = read(tmp_path, text.encode(), "a.csv")
    assert report.problems == [] and made[0] == chat(ASKED, SAID)
    assert made[1]["messages"][0]["content"] == "two\nlines"


def test_a_table_with_missing_columns_or_cells(tmp_path: Path) -> None:
    report, _ = read(tmp_path, b"a,b\n1,2\n", "a.csv")
    assert "'prompt' and 'completion'" in str(report.problems[0])
    report, _ = read(tmp_path, b"prompt,completion\nx\nHi,Hello\n,\n", "a.csv")
    assert (report.examples, [one.line for one in report.problems]) == (1, [2])
    report, _ = read(tmp_path, b"prompt,completion\n\xff,x\n", "a.csv")
    assert "UTF-8" in str(report.problems[0])
    report, _ = read(tmp_path, b'prompt,completion\nHi,Hello\n"' + b"x" * 200_000 + b'",y\n', "a.csv")
    assert report.examples == 1 and "field larger" in str(report.problems[0])


def test_blocks_of_text(tmp_path: Path) -> None:
    text = "System: Be kind.\nUser: Hi\nthere\n\nbut not\n\n\nuser: Hi\nAssistant: Hello\n"
    report, made = read(tmp_path, text.encode(), "a.txt")
    assert [(one.line, one.message[:30]) for one in report.problems] == [
        (1, "Invalid 'messages': the last o"),
        (5, "A block begins with 'System:',"),
    ]
    assert made == [chat(ASKED, SAID)]


@pytest.mark.parametrize(("data", "kind"), [(b'\n {"messages": 1}', "jsonl"), (b"User: x", "text"), (b"", "text")])
def test_without_a_file_extension_the_beginning_decides_the_format(tmp_path: Path, data: bytes, kind: str) -> None:
    assert read(tmp_path, data, "dataset")[0].format == kind


def test_reading_stops_when_it_is_cancelled(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(lines())
    assert read_file(tmp_path / "file", "a.jsonl", 1, None, lambda: True).examples == 0


def test_an_overlong_conversation_is_refused_and_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "LONGEST", 100)
    text = b"User: Hi\nAssistant: Hello\n" + b"more\n" * 30 + b"\nUser: Hi\nAssistant: Hello\n\n you\n"
    report, made = read(tmp_path, text.replace(b"\n\n you", b"\n  you"), "a.txt")
    assert [(one.line, "longer than 100" in one.message) for one in report.problems] == [(1, True)]
    assert made == [{"messages": [ASKED, {"role": "assistant", "content": "Hello\n  you"}]}]


@pytest.mark.parametrize(("name", "first"), [("a.jsonl", b""), ("a.txt", b""), ("a.csv", b"prompt,completion\n")])
def test_reading_empty_lines_stops_when_it_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, first: bytes
) -> None:
    monkeypatch.setattr(dataset, "ASK", 10)
    (tmp_path / "file").write_bytes(first + b"\n" * 1000)
    asked = list[bool]()

    def over() -> bool:
        asked.append(True)
        return len(asked) == 2

    read_file(tmp_path / "file", name, 1, None, over)
    assert len(asked) == 2
