"""The files for deployment: the image, compose.yaml, units and manifests are valid and do what they should."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement

from proxy import registry
from proxy.config import load, packaged
from proxy.errors import ConfigError
from proxy.identity import check_exposure
from proxy.settings import Listen
from proxy.upstreams.demo import Simulator, running
from tests.conftest import ASK
from tests.dockerfile import Image, NoIndex, Stage, stages_of
from tests.servers import free_port
from tests.test_docs import DOCS, ROOT, blocks

PAGE = DOCS / "deployment.md"
CONTAINER = packaged("container.yaml")
STAGES = stages_of((ROOT / "Dockerfile").read_text())
LAST = STAGES[-1]
DRAIN = Listen().drain


def tool(name: str) -> str:
    """A program beside this Python or on the PATH; without it the test is skipped."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def ran(*command: str | Path) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


# --- the image -------------------------------------------------------------------------------------


def test_the_dockerfile_passes_the_linter() -> None:
    ran(tool("hadolint"), "--failure-threshold", "style", ROOT / "Dockerfile")


@pytest.mark.parametrize("stage", STAGES)
def test_an_image_is_built_on_a_minor_version(stage: Stage) -> None:
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", stage.base)


def test_all_stages_use_the_same_python() -> None:
    assert len({stage.base for stage in STAGES}) == 1, "a venv links to the Python that created it"


def test_the_last_stage_installs_nothing() -> None:
    assert LAST.all("RUN") == [] and LAST.all("ADD") == []


def test_the_image_runs_as_a_numeric_user_other_than_root() -> None:
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", LAST.last("USER").value), "runAsNonRoot needs a numeric user ID"
    (data,) = (copy for copy in LAST.all("COPY") if copy.words[-1] == "/data/")
    assert data.options["chown"] == LAST.last("USER").value and LAST.last("VOLUME").value == "/data"


def test_the_server_is_the_process_that_gets_signals() -> None:
    assert [*LAST.last("ENTRYPOINT").exec, *LAST.last("CMD").exec] == ["gemmapy-proxy", "serve"]


def test_the_image_exposes_the_port_it_listens_on() -> None:
    assert LAST.env["GEMMAPY_HOST"] == "0.0.0.0"
    assert LAST.env["GEMMAPY_PORT"] == LAST.last("EXPOSE").value == "8080"


def test_copied_files_exist_and_are_not_ignored() -> None:
    sources = [
        word for stage in STAGES for copy in stage.all("COPY") if "from" not in copy.options for word in copy.words[:-1]
    ]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    assert {re.sub(r"/.*", "/", source) for source in sources} <= allowed


def test_locked_requirements_match_the_projects_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["tokens"]]
    locked: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "requirements.txt").read_text(), re.M):
        locked.setdefault(name, []).append(version)
    assert [str(one) for one in asked if not all(map(one.specifier.contains, locked.get(one.name, [""])))] == []


@pytest.fixture
def port() -> str:
    return str(free_port())


@asynccontextmanager
async def contained(image: Image, env: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the image's own command until the block is left."""
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


@pytest.mark.image
async def test_the_dockerfiles_commands_build_a_server_that_is_healthy(tmp_path: Path, port: str) -> None:
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
                while b"listens on" not in (line := await process.stderr.readline()):
                    assert line, "it ended without a banner"
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


def test_the_containers_configuration_is_valid_with_a_key() -> None:
    config, source = load(CONTAINER, registry.problems_of, {"GEMMAPY_KEY": "secret"})
    check_exposure(config, source, insecure=False)
    assert config.listen.host == "0.0.0.0" and config.upstreams["local"].ollama == ("http://ollama:11434",)


@pytest.mark.parametrize("env", [{}, {"GEMMAPY_KEY": ""}])
def test_a_container_without_a_key_refuses_to_start(env: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as raised:
        load(CONTAINER, registry.problems_of, env)
    (problem,) = raised.value.problems
    assert re.search(r"container\.yaml:\d+: environment variable GEMMAPY_KEY is (not set|empty)", problem)


# --- compose ---------------------------------------------------------------------------------------


def test_compose_and_the_workflow_match_their_schemas() -> None:
    check = tool("check-jsonschema")
    ran(check, "--builtin-schema", "vendor.compose-spec", ROOT / "compose.yaml")
    ran(check, "--builtin-schema", "vendor.github-workflows", *(ROOT / ".github/workflows").iterdir())


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    return found


def test_only_the_proxy_is_published(services: dict[str, Any]) -> None:
    published = {name for name, service in services.items() if "ports" in service}
    assert published == {"proxy", "grafana"} and services["grafana"]["profiles"] == ["monitoring"]
    assert services["grafana"]["ports"] == ["127.0.0.1:3000:3000"]
    assert services["proxy"]["ports"] == ["${GEMMAPY_BIND:-127.0.0.1}:8080:8080"]


def test_files_mounted_for_monitoring_exist(services: dict[str, Any]) -> None:
    mounted = [one for name in ("prometheus", "grafana") for one in services[name]["volumes"] if one.startswith("./")]
    assert len(mounted) == 3 and all((ROOT / one.split(":")[0]).exists() for one in mounted)
    scraped = yaml.safe_load((ROOT / "config/prometheus.yml").read_text())["scrape_configs"]
    assert [one["static_configs"] for one in scraped] == [[{"targets": ["proxy:8080"]}]]


def test_the_proxy_starts_once_the_other_services_are_healthy(services: dict[str, Any]) -> None:
    waits = services["proxy"]["depends_on"]
    assert waits == {name: {"condition": "service_healthy"} for name in ("ollama", "redis")}
    assert all("healthcheck" in services[name] for name in waits)


def test_the_proxys_container_has_no_further_privileges(services: dict[str, Any]) -> None:
    proxy = services["proxy"]
    assert proxy["read_only"] is True and proxy["cap_drop"] == ["ALL"] and "privileged" not in proxy
    assert all("no-new-privileges:true" in service["security_opt"] for service in services.values())


def test_services_are_restarted_and_the_proxy_has_time_to_drain(services: dict[str, Any]) -> None:
    assert {service["restart"] for service in services.values()} == {"unless-stopped"}
    assert seconds(services["proxy"]["stop_grace_period"]) > DRAIN


def test_no_secret_is_in_the_file(services: dict[str, Any]) -> None:
    assert services["proxy"]["environment"]["GEMMAPY_KEY"].startswith("${GEMMAPY_KEY:?")
    assert not (ROOT / ".env").exists()


# --- the page --------------------------------------------------------------------------------------


def manifests() -> dict[str, Any]:
    text = next(block for block in blocks(PAGE, "yaml") if "kind: Deployment" in block)
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


@pytest.mark.parametrize("text", blocks(PAGE, "yaml"))
def test_the_pages_yaml_is_valid(text: str) -> None:
    assert list(yaml.safe_load_all(text))


@pytest.mark.parametrize("kind", ["ConfigMap", "Deployment", "Service"])
def test_a_manifest_is_valid_for_kubernetes(kind: str) -> None:
    kubernetes_validate.validate(manifests()[kind], "1.33", strict=True)


def test_the_deployment_is_probed_drained_and_confined() -> None:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert pod["terminationGracePeriodSeconds"] > container["lifecycle"]["preStop"]["sleep"]["seconds"] + DRAIN
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == LAST.last("USER").value
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {"requests", "limits"} <= set(container["resources"])


def test_the_manifests_configuration_is_valid(tmp_path: Path) -> None:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    (variable,) = pod["containers"][0]["env"]
    assert "secretKeyRef" in variable["valueFrom"]
    (tmp_path / "proxy.yaml").write_text(manifests()["ConfigMap"]["data"]["proxy.yaml"])
    config, source = load(tmp_path / "proxy.yaml", registry.problems_of, {variable["name"]: "secret"})
    check_exposure(config, source, insecure=False)
    mounted = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}["config"]
    assert mounted["mountPath"] == str(Path(LAST.env["GEMMAPY_CONFIG"]).parent)
    assert "subPath" not in mounted, "a file mounted through subPath is never updated"


def test_services_ports_lead_to_the_container() -> None:
    service, pod = manifests()["Service"]["spec"], manifests()["Deployment"]["spec"]["template"]
    assert service["selector"].items() <= pod["metadata"]["labels"].items()
    named = {one["name"]: one["containerPort"] for one in pod["spec"]["containers"][0]["ports"]}
    assert named[service["ports"][0]["targetPort"]] == int(LAST.env["GEMMAPY_PORT"])


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The page's systemd unit, with a program that exists on this machine."""
    (text,) = blocks(PAGE, "ini")
    assert "/opt/gemmapy/bin/gemmapy-proxy" in text
    file = tmp_path / "gemmapy-proxy.service"
    file.write_text(text.replace("/opt/gemmapy/bin/gemmapy-proxy", "/bin/true"))
    return file


def test_systemd_accepts_the_unit(unit: Path) -> None:
    told = ran(tool("systemd-analyze"), "verify", "--man=no", "--recursive-errors=no", unit)
    assert [line for line in told.splitlines() if unit.name in line] == []


def test_the_unit_is_confined(unit: Path) -> None:
    """systemd's exposure level: 0 is fully confined, 10 is unconfined."""
    ran(tool("systemd-analyze"), "security", "--offline=yes", "--threshold=20", unit)


def test_the_unit_reloads_and_drains(unit: Path) -> None:
    told = dict(re.findall(r"^(\w+)=(.+)$", unit.read_text(), re.M))
    assert told["ExecReload"] == "/bin/kill -HUP $MAINPID" and told["KillMode"] == "mixed"
    assert seconds(told["TimeoutStopSec"]) > DRAIN


def test_the_pages_settings_exist() -> None:
    assert set(re.findall(r"`listen\.(\w+)", PAGE.read_text())) <= set(Listen.model_fields)
    (listen,) = (block for block in blocks(PAGE, "yaml") if block.startswith("listen:"))
    assert Listen.model_validate(yaml.safe_load(listen)["listen"]).base_path == "/llm"
