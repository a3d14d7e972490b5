"""`gemmapy-proxy evaluate`: the user's questions against a running server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import pytest_asyncio

from proxy.cli import main
from proxy.commands.ranks import Figures, Question, figures, plot, read
from proxy.errors import ConfigError
from tests.conftest import Running, Start
from tests.plugins.documents.asking import config, fill

ASKED: list[dict[str, str | None]] = [
    {
        "question": "Who kept the lantern of Porthgwarra?",
        "document": "lanterns",
        "answer": "its  KEEPER was Mabel Quill",
    },
    {"question": "When are pears grafted?", "answer": "grafted in March"},
    {"question": "How often does the clock strike?", "document": "Clocks"},
    {"question": "Who painted the town hall?", "document": "Nowhere", "answer": None},
]


def test_figures_match_their_definitions() -> None:
    found = figures([1, 2, 0, 4], 4)
    assert found.hits == [0.25, 0.5, 0.5, 0.75] and found.hit(10) == 0.75
    assert found.mrr == pytest.approx((1 + 1 / 2 + 1 / 4) / 4)
    assert found.ndcg == pytest.approx((1 + 0.63093 + 0.43068) / 4, abs=1e-4)
    assert figures([5], 4) == Figures([0, 0, 0, 0], 0, 0)


def test_an_expected_document_is_given_by_id_title_or_words() -> None:
    found = {"document_id": "doc_1", "title": "A Title", "source": None, "content": "It was\nfounded in 1912."}
    for fits in (Question("?", "doc_1"), Question("?", "a title"), Question("?", "", "FOUNDED  in")):
        assert fits.fits(found)
    for not_that in (Question("?", "doc"), Question("?", "A Title", "1913"), Question("?", "B", "1912")):
        assert not not_that.fits(found)


@pytest.mark.parametrize(
    ("name", "text", "problems"),
    [
        ("a.jsonl", "", ["a.jsonl: there is no question in it"]),
        (
            "a.jsonl",
            '{"question": "Who?"}\nno\n[1]\n',
            ["a.jsonl:1: 'document' or", "a.jsonl:2: no JSON", ":3: it is no"],
        ),
        ("a.jsonl", '\n{"question": " ", "answer": "x"}', ["a.jsonl:2: 'question' is missing"]),
        ("a.jsonl", '{"question": "Who?", "answer": 3}', ["a.jsonl:1: 'answer' is no text"]),
        ("a.csv", "question,answer\nWho?,\n", ["a.csv:2: 'document' or"]),
        ("a.csv", "frage,answer\nWer?,er\n", ["a.csv:2: 'question' is missing"]),
    ],
)
def test_an_invalid_file_is_an_error_naming_the_line(tmp_path: Path, name: str, text: str, problems: list[str]) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read(file)
    assert len(raised.value.problems) == len(problems)
    assert all(part in told for part, told in zip(problems, raised.value.problems, strict=True))


def test_a_missing_or_binary_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_bytes(b"\xff\xfe\0")
    for name in ("none.jsonl", "bad.csv"):
        with pytest.raises(ConfigError, match=name):
            read(tmp_path / name)


def test_commas_and_line_ends_in_a_csv_can_be_quoted(tmp_path: Path) -> None:
    file = tmp_path / "q.CSV"
    file.write_text('\ufeffquestion,document,answer\n"Who, then?",A,"two\nlines"\n', encoding="utf-8")
    assert read(file) == [Question("Who, then?", "A", "two\nlines")]


def test_a_plot_is_xml_with_a_line_for_each_kind_of_search() -> None:
    drawn = ElementTree.fromstring(plot({"a<b": figures([1], 1), "words": figures([2, 0], 10)}))
    assert sum(one.get("fill") == "none" for one in drawn.iter("{http://www.w3.org/2000/svg}polyline")) == 2


@pytest_asyncio.fixture(loop_scope="function")
async def filled(start: Start, tmp_path: Path) -> AsyncIterator[Running]:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        await fill(run)
        yield run


async def test_questions_are_run_with_every_kind_of_search_and_misses_are_listed(
    filled: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, drawn = tmp_path / "q.jsonl", tmp_path / "hits.svg"
    file.write_text("\n".join(map(json.dumps, ASKED)))
    to = ["evaluate", str(file), "--url", filled.url + "/", "--key", "a-key", "--collection", "default"]

    async def evaluated(*more: str) -> tuple[int, str, str]:
        status = await asyncio.to_thread(main, [*to, *more])
        return status, *capsys.readouterr()

    status, out, _ = await evaluated("--json", "--plot", str(drawn), "--least", "0.7")
    told = json.loads(out)
    assert status == 0 and told["questions"] == 4 and set(told["ways"]) == {"vectors", "words", "mixed"}
    assert told["ways"]["mixed"]["hit@1"] == told["ways"]["mixed"]["hit@10"] == told["ways"]["words"]["mrr"] == 0.75
    (miss,) = told["misses"]
    assert miss["question"] == ASKED[3]["question"] and miss["ranks"] == dict.fromkeys(told["ways"])
    assert {"title", "document_id", "content"} == set(miss["found"][0])
    assert ElementTree.parse(drawn).getroot().tag.endswith("svg")

    status, out, _ = await evaluated("--misses", "--least", "0.8", "--top", "3")
    assert status == 1 and "hit@3" in out and "hit@10" not in out and "0.750" in out and "█" in out
    assert "Who painted the town hall?" in out and "wanted: Nowhere" in out and "mixed not found" in out
    assert "Who kept" not in out

    status, out, err = await evaluated("--search", '{"nothing": 1}')
    assert status == 1 and "nothing" in err and "Traceback" not in err and not out
    status, _, err = await evaluated("--collection", "elsewhere")
    assert status == 1 and "elsewhere" in err
    status, _, err = await evaluated("--key", "wrong")
    assert status == 1 and "key" in err.lower()


async def test_an_unreachable_or_different_server_is_an_error(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "q.csv"
    file.write_text("question,answer\nWho?,me\n")
    assert await asyncio.to_thread(main, ["evaluate", str(file), "--url", "http://127.0.0.1:1"]) == 1
    assert "127.0.0.1:1" in capsys.readouterr().err
    async with start() as run:  # a proxy without documents
        assert await asyncio.to_thread(main, ["evaluate", str(file), "--url", run.url]) == 1
    assert "Who?" in capsys.readouterr().err
