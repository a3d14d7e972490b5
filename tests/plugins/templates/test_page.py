"""The documentation page and the command line for templates are right."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugins.templates import library, yamltext
from plugins.templates.lint import warnings
from proxy.cli import main
from tests.conftest import Start
from tests.forks import ran
from tests.test_docs import DOCS, ROOT, blocks, here

PAGE = DOCS / "templates.md"


def test_every_template_of_the_library_is_on_the_page() -> None:
    page = PAGE.read_text()
    for one in library.built_in().newest():
        mark = " ◆" if one.document.answer_schema else ""
        assert f"`{one.document.name}`{mark}," in page or f"`{one.document.name}`{mark} |" in page, one.document.name


@pytest.mark.parametrize(
    ("number", "says"),
    [(0, ("The river rose", "Target language: French")), (1, ("'version': 1", "Greet Ana in verse."))],
)
async def test_the_pages_python_runs_with_its_configuration(
    start: Start, tmp_path: Path, number: int, says: tuple[str, ...]
) -> None:
    example = blocks(PAGE, "python")[number]
    config = next(block for block in blocks(PAGE, "yaml") if "chains:" in block)
    database = f"database: {{url: 'sqlite:///{tmp_path}/t.db'}}\n"
    async with start(database + config.replace("llama3.2:3b", "demo")) as run:
        done = await ran(here(example, run))
    assert done.returncode == 0, done.stderr
    assert all(part in done.stdout for part in says)


def test_the_pages_template_is_valid() -> None:
    text = next(block for block in blocks(PAGE, "yaml") if block.startswith("name:"))
    (document,) = yamltext.read("page", text)
    assert list(warnings(document)) == []


def test_the_command_line_checks_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, odd, wrong = (tmp_path / name for name in ("good", "odd.yaml", "wrong.yaml"))
    good.mkdir()
    (good / "a.yaml").write_text(next(block for block in blocks(PAGE, "yaml") if block.startswith("name:")))
    odd.write_text("name: odd\ndescription: Odd.\ntemplate: Hello.\nvariables: [who]\n")
    wrong.write_text("name: wrong\n")
    assert main(["templates", "lint", "--strict", str(good), str(ROOT / "config" / "templates")]) == 0
    assert main(["templates", "lint", str(odd)]) == 0
    assert f"{odd}: odd@1: the variable 'who' is used nowhere" in capsys.readouterr().out
    assert main(["templates", "lint", "--strict", str(odd)]) == 1
    assert main(["templates", "lint", str(good), str(wrong)]) == 1
    assert f"{wrong}:1: messages: this field is required" in capsys.readouterr().err
    assert main(["templates", "lint", str(tmp_path / "nowhere")]) == 1
