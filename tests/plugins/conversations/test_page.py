"""The examples of the page on conversations run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Start
from tests.forks import ran
from tests.test_docs import DOCS, blocks, here

PAGE = DOCS / "conversations.md"


def configured(example: str, folder: Path) -> str:
    return example.replace("sqlite:///data", f"sqlite:///{folder}")


async def test_the_pages_python_runs(start: Start, tmp_path: Path) -> None:
    examples = "\n".join(blocks(PAGE, "python"))  # in one process, because importing the SDK takes most of the time
    async with start(configured(blocks(PAGE, "yaml")[0], tmp_path)) as run:
        done = await ran(here(examples, run))
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.strip().splitlines()) == 5


@pytest.mark.parametrize("example", blocks(PAGE, "yaml"))
async def test_the_pages_configurations_are_valid(start: Start, tmp_path: Path, example: str) -> None:
    async with start(configured(example, tmp_path)) as run:
        assert run.url
