"""What is shipped for running it elsewhere: the image, compose.yaml, units and manifests do what they say."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from packaging.requirements import Requirement

from proxy import registry
from proxy.config import load, packaged
from proxy.errors import ConfigError
from proxy.identity import check_exposure
from proxy.upstreams.demo import Simulator, running
from tests.conftest import ASK
from tests.dockerfile import Image, NoIndex, Stage, stages_of
from tests.test_docs import ROOT

CONTAINER = packaged("container.yaml")
STAGES = stages_of((ROOT / "Dockerfile").read_text())
LAST = STAGES[-1]


def tool(name: str) -> str:
    """A program beside this Python or on the PATH; the test is skipped where there is none."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def ran(*command: str | Path) -> str:
    """What a command that must succeed wrote."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# --- the image -------------------------------------------------------------------------------------


def test_the_dockerfile_has_nothing_that_a_linter_minds() -> None:
    ran(tool("hadolint"), "--failure-threshold", "style", ROOT / "Dockerfile")


@pytest.mark.parametrize("stage", STAGES)
def test_an_image_is_built_on_a_minor_version(stage: Stage) -> None:
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", stage.base)


def test_all_stages_are_of_one_python() -> None:
    assert len({stage.base for stage in STAGES}) == 1, "a venv's links lead to the Python that made it"


def test_the_last_stage_installs_nothing() -> None:
    assert LAST.all("RUN") == [] and LAST.all("ADD") == []


def test_the_image_runs_as_nobody_in_particular() -> None:
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", LAST.last("USER").value), "a number, or runAsNonRoot cannot tell"
    (data,) = (copy for copy in LAST.all("COPY") if copy.words[-1] == "/data/")
    assert data.options["chown"] == LAST.last("USER").value and LAST.last("VOLUME").value == "/data"


def test_signals_reach_the_server() -> None:
    assert [*LAST.last("ENTRYPOINT").exec, *LAST.last("CMD").exec] == ["gemmapy-proxy", "serve"]


def test_the_image_says_where_it_listens() -> None:
    assert LAST.env["GEMMAPY_HOST"] == "0.0.0.0"
    assert LAST.env["GEMMAPY_PORT"] == LAST.last("EXPOSE").value == "8080"


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    sources = [
        word for stage in STAGES for copy in stage.all("COPY") if "from" not in copy.options for word in copy.words[:-1]
    ]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    assert {re.sub(r"/.*", "/", source) for source in sources} <= allowed


def test_what_is_locked_is_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["tokens"]]
    locked: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "requirements.txt").read_text(), re.M):
        locked.setdefault(name, []).append(version)
    assert [str(one) for one in asked if not all(map(one.specifier.contains, locked.get(one.name, [""])))] == []


@pytest.fixture
def port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@asynccontextmanager
async def contained(image: Image, env: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """The image's own command, until the block is left."""
    command = [*LAST.last("ENTRYPOINT").exec, *LAST.last("CMD").exec]
    process = await asyncio.create_subprocess_exec(
        shutil.which(command[0], path=env["PATH"]) or command[0],
        *command[1:],
        cwd=image.directory,
        env=env,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def healthy(env: dict[str, str]) -> bool:
    command = LAST.last("HEALTHCHECK").exec
    python = shutil.which(command[0], path=env["PATH"])
    assert python is not None and python.startswith(env["PATH"].split(":")[0])
    check = await asyncio.create_subprocess_exec(python, *command[1:], env=env, stderr=asyncio.subprocess.DEVNULL)
    return await check.wait() == 0


@pytest.mark.slow
async def test_the_images_own_commands_make_a_server_that_is_healthy(tmp_path: Path, port: str) -> None:
    image = Image(tmp_path / "image", ROOT)
    try:
        await asyncio.to_thread(image.build, STAGES)
    except NoIndex:
        pytest.skip("pip reaches no package index")
    assert not (image.root / "opt/gemmapy/bin/pip").exists() and not (image.root / "src").exists()

    async with contained(image, image.runtime(GEMMAPY_PORT=port)) as process:
        _, told = await asyncio.wait_for(process.communicate(), 10)
        assert process.returncode == 1 and b"GEMMAPY_KEY is not set" in told and b"Traceback" not in told

    async with running(Simulator()) as ollama:
        env = image.runtime(GEMMAPY_PORT=port, GEMMAPY_KEY="of-this-test", OLLAMA_URL=ollama)
        async with contained(image, env) as process:
            assert process.stderr is not None
            async with asyncio.timeout(10):
                while b"listens on" not in await process.stderr.readline():
                    assert process.returncode is None
            assert await healthy(env)
            assert await asks(port, "of-this-test") == 200 and await asks(port, "of-another") == 401
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 5) == 0
            assert not await healthy(env)


async def asks(port: str, key: str) -> int:
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers) as http:
        return (await http.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=ASK)).status


# --- its configuration -----------------------------------------------------------------------------


def test_the_configuration_of_containers_is_right_once_there_is_a_key() -> None:
    config, _ = load(CONTAINER, registry.problems_of, {"GEMMAPY_KEY": "secret"})
    check_exposure(config, insecure=False)
    assert config.listen.host == "0.0.0.0" and config.upstreams["local"].ollama == ("http://ollama:11434",)


@pytest.mark.parametrize("env", [{}, {"GEMMAPY_KEY": ""}])
def test_a_container_without_a_key_is_told_of(env: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as raised:
        load(CONTAINER, registry.problems_of, env)
    (problem,) = raised.value.problems
    assert re.search(r"container\.yaml:\d+: environment variable GEMMAPY_KEY is (not set|empty)", problem)
