"""The documentation is true: generated pages are current, and the examples run."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import jsonschema_rs
import pytest
import yaml

from proxy import config as configuration
from proxy import reference, registry
from proxy.cli import main, parser
from proxy.config import packaged
from proxy.identity import is_guarded
from proxy.types import Route
from tests.conftest import BARE, Running, Start
from tests.forks import ran

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
DEMO = packaged("demo.yaml").read_text()
PAGES = (ROOT / "README.md", DOCS / "caching.md", DOCS / "limits.md", DOCS / "metrics.md")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def test_the_settings_page_is_current() -> None:
    assert (DOCS / "configuration.md").read_text() == reference.settings_page()


def test_the_parameter_page_is_current() -> None:
    assert (DOCS / "parameters.md").read_text() == reference.parameters_page()


def test_the_schema_for_editors_is_current() -> None:
    assert json.loads((ROOT / "config" / "schema.json").read_text()) == reference.schema()


@pytest.mark.parametrize("name", ["proxy.yaml", "minimal.yaml", "demo.yaml", "container.yaml"])
def test_the_packaged_configurations_match_the_schema(name: str) -> None:
    validator = jsonschema_rs.validator_for(reference.schema())
    assert [error.message for error in validator.iter_errors(yaml.safe_load(packaged(name).read_text()))] == []


def test_every_setting_has_a_description() -> None:
    assert [line for line in reference.settings_page().splitlines() if line.endswith("|  |")] == []


def test_every_plugin_is_named_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [name for name in registry.known() if f"`{name}`" not in readme] == []


async def test_every_endpoint_is_in_the_table(start: Start, tmp_path: Path) -> None:
    page = (DOCS / "http.md").read_text()
    plugins = ", ".join(f"{name}: {{}}" for name in registry.known())
    records = f"accounts: {{bootstrap: false}}\ndatabase: {{url: 'sqlite:///{tmp_path}/x.db'}}\n"
    chains = BARE.replace("chat: []", "chat: [conversations]")
    async with start(f"{chains}\nwrites: local\n{records}plugins: {{{plugins}}}\n") as run:
        routes: tuple[Route, ...] = run.server.live.pipeline.router.routes
        paths = [re.sub(r":[^}]+}", "}", route.path) for route in routes]
        assert [
            path
            for path, route in zip(paths, routes, strict=True)
            if f"| `{route.method} {path}` | {route.who} |" not in page
        ] == []


async def test_every_response_header_is_in_the_table(start: Start) -> None:
    page = (DOCS / "http.md").read_text()
    async with start() as run:
        response = await run.chat(keep_alive=1)
        ours = {name.lower() for name in response.headers if name.lower().startswith(("x-", "openai-"))}
        assert ours >= {"x-request-id", "x-gemmapy-model", "x-gemmapy-params", "openai-processing-ms"}
        assert [name for name in ours if f"`{name}`" not in page] == []


def test_links_between_pages_are_not_broken() -> None:
    for page in [*ROOT.glob("*.md"), *DOCS.glob("*.md")]:
        for link in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


@cache
def modules_and_words() -> tuple[set[str], set[str]]:
    """The paths of the code's files, with and without their suffix, and all words in the code."""
    files = [path for folder in ("proxy", "plugins", "tests") for path in (ROOT / folder).rglob("*.py")]
    paths = [path.relative_to(ROOT) for path in files]
    ends = {
        Path(*path.parts[at:]) for path in [*paths, *(path.parent for path in paths)] for at in range(len(path.parts))
    }
    words = {word for path in files for word in re.findall(r"\w+", path.read_text())}
    return {str(one) for one in ends} | {str(one.with_suffix("")) for one in ends if one.name}, words


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/plugins.md", "docs/dialects.md", "CONTRIBUTING.md"])
def test_names_of_the_code_exist(page: str) -> None:
    """Modules, by the end of their path, and words that look like classes or functions."""
    modules, words = modules_and_words()
    quoted = re.findall(r"`([^`\s]+)`", (ROOT / page).read_text())
    named = [one for one in quoted if re.fullmatch(r"[a-z_0-9]+(/[a-z_0-9]+)+(\.py)?", one)]
    assert [one for one in named if one not in modules] == []
    called = [one for one in quoted if re.fullmatch(r"[A-Z][a-z]+\w*|[a-z]\w*_\w+|\w+(\.\w+)*\(\w*\)", one)]
    assert [one for one in called if not words.issuperset(re.findall(r"\w+", one)) and one not in modules] == []


async def test_the_example_plugin_runs(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = next(block for block in blocks(DOCS / "plugins.md", "python") if "class Guard" in block)
    (tmp_path / "acme_guard.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    (text,) = blocks(DOCS / "plugins.md", "yaml")
    async with start(text) as run:
        assert (await run.chat(messages=[{"role": "user", "content": "swordfish"}])).status == 400
        answer = await run.chat(shout=True)
        assert answer.headers["x-gemmapy-shouted"] == "yes" and "x-gemmapy-params" not in answer.headers
        assert "YOU SAID" in (await answer.json())["choices"][0]["message"]["content"]
        assert await (await run.http.get(f"{run.url}/shouts")).json() == {"shouted": 1}


def here(example: str, run: Running) -> str:
    return example.replace("http://127.0.0.1:8080", run.url)


@pytest.mark.parametrize("example", [*blocks(ROOT / "README.md", "python"), *blocks(DOCS / "clients.md", "python")])
async def test_the_examples_for_apps_run(start: Start, example: str) -> None:
    async with start(DEMO) as run:
        done = await ran(here(example, run))
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()


async def test_the_examples_of_responses_run(start: Start, tmp_path: Path) -> None:
    page = DOCS / "responses.md"
    text = blocks(page, "yaml")[-1].replace("nomic-embed-text", "demo-embed")
    async with start(text.replace("data/", f"{tmp_path}/")) as run:
        examples = "\n".join(here(one, run) for one in blocks(page, "python"))
        done = await ran(examples)
        assert done.returncode == 0, done.stderr
        assert "completed This is a simulated answer" in done.stdout and "['message', 'message'" in done.stdout
        assert "lights.txt Mabel Quill kept the light" in done.stdout and "AnnotationFileCitation(" in done.stdout


async def test_the_examples_of_comparisons_run(start: Start, tmp_path: Path) -> None:
    page = DOCS / "comparison.md"
    (text,), (example,) = blocks(page, "yaml"), blocks(page, "python")
    async with start(text.replace("sqlite:///data", f"sqlite:///{tmp_path}")) as run:
        done = await ran(here(example, run))
        assert done.returncode == 0, done.stderr
        assert re.search(r"the winner is demo(-thinking)?\n\[\(1, 'demo", done.stdout), done.stdout


async def test_the_examples_of_files_run(start: Start, tmp_path: Path) -> None:
    page = DOCS / "files.md"
    (text,), (example,) = blocks(page, "yaml"), blocks(page, "python")
    async with start(text.replace("sqlite:///data", f"sqlite:///{tmp_path}")) as run:
        done = await ran(here(example, run))
        assert done.returncode == 0, done.stderr
        assert "41 processed\n['lights.txt']\nThe light of Porthgwarra" in done.stdout


async def test_the_examples_of_fine_tuning_run(start: Start, tmp_path: Path) -> None:
    page = DOCS / "finetuning.md"
    (text,), (example, trainer) = blocks(page, "yaml"), blocks(page, "python")
    (tmp_path / "trainer.py").write_text(trainer.replace("2048, 512", "384, 96"))  # as for the simulated model
    text = text.replace("python3", sys.executable).replace("/opt/tuning", str(tmp_path)).replace("llama3.2:1b*", "demo")
    text = text.replace("sqlite:///data", f"sqlite:///{tmp_path}").replace(
        "trainers:", f"folder: {tmp_path}/tuning\n    trainers:"
    )
    async with start(text) as run:
        example = here(example, run).replace("llama3.2:1b", "demo")
        done = await ran(example)
        assert done.returncode == 0, done.stderr
        assert "Training begins." in done.stdout and "Step 10/10: training loss=0.1" in done.stdout
        assert "succeeded ft-demo-sums-" in done.stdout and "This is a simulated answer" in done.stdout


async def test_the_example_of_experiments_runs(start: Start, tmp_path: Path) -> None:
    page = DOCS / "experiments.md"
    (text,), (example,) = blocks(page, "yaml"), blocks(page, "python")
    async with start(text.replace("sqlite:///data", f"sqlite:///{tmp_path}")) as run:
        done = await ran(here(example, run))
        assert done.returncode == 0, done.stderr
        assert set(done.stdout.split()) == {"tone=plain", "tone=kind"}
        results = await (await run.http.get(f"{run.url}/api/experiments/tone/results")).json()
        assert sum(one["units"] for one in results["variants"]) == 8


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
async def test_the_readmes_curl_runs(start: Start) -> None:
    (example,) = (block for block in blocks(ROOT / "README.md", "sh") if block.startswith("curl"))
    async with start(DEMO) as run:
        done = await asyncio.to_thread(
            subprocess.run, ["bash", "-c", here(example, run)], capture_output=True, text=True, check=False
        )
        assert "This is a simulated answer" in done.stdout, done.stderr


@pytest.mark.parametrize("example", blocks(DOCS / "recipes.md", "yaml"))
def test_the_recipes_are_valid_and_cause_no_warnings(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:6379/0")
    monkeypatch.setenv("DATABASE_URL", "postgresql://a:b@127.0.0.1/c")
    for name in ("ACCOUNTS_SECRET", "OPENAI_API_KEY", "ALICE_KEY", "OPS_KEY"):
        monkeypatch.setenv(name, f"the-text-of-{name}")
    (tmp_path / "my.yaml").write_text(example)
    monkeypatch.chdir(tmp_path)
    assert main(["check", "my.yaml"]) == 0
    assert capsys.readouterr().err == ""  # and no warnings


def test_every_command_is_in_the_table() -> None:
    page = (DOCS / "recipes.md").read_text().partition("## The command line")[2]
    (commands,) = (one.choices for one in parser()._actions if isinstance(one.choices, dict))
    assert [name for name in commands if not re.search(rf"`{name}[ `]", page)] == []


def complete(example: str) -> str:
    """A part of a configuration, completed so that a server could run with it."""
    return example if "chains:" in example else f"{example}chains: {{chat: []}}\n"


@pytest.mark.parametrize("example", [one for one in blocks(DOCS / "identity.md", "yaml") if "middlewares" not in one])
def test_the_configurations_of_identity_are_valid(example: str) -> None:
    env = {name: f"{name} of at least sixteen" for name in ("ALICE_KEY", "OPS_KEY", "BATCH_KEY")}
    config, _ = configuration.read("proxy.yaml", complete(example), registry.problems_of, env)
    assert is_guarded(config)


@pytest.mark.parametrize("example", [one for page in PAGES for one in blocks(page, "yaml") if "chains:" in one])
async def test_the_readmes_configurations_are_valid(
    start: Start, example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the default place of the records
    async with start(re.sub(r"^listen:.*\n", "", example, flags=re.M)) as run:
        assert run.url


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
async def test_the_example_documents_answer_the_example_questions(start: Start, tmp_path: Path) -> None:
    page = DOCS / "documents.md"
    text = blocks(page, "yaml")[-1].replace("data/", f"{tmp_path}/").replace("nomic-embed-text", "demo-embed")
    async with start(text) as run:
        for language, program in (("sh", "bash"), ("python", sys.executable)):
            example = here("".join(blocks(page, language)), run).replace("gemmapy-proxy", f"{sys.executable} -m proxy")
            done = await asyncio.to_thread(
                subprocess.run, [program, "-c", example], capture_output=True, text=True, check=False, cwd=ROOT
            )
            assert done.returncode == 0 and "The light of Porthgwarra was lit in 1891" in done.stdout, done
            assert '"error":{' not in done.stdout
            assert language != "sh" or re.search(r"mixed.*1\.000.*1\.000", done.stdout), done
