"""The command line, as its users run it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from proxy.cli import main
from proxy.errors import ConfigError
from proxy.upstreams.demo import Fault, Simulator, running
from tests.conftest import ASK, Start
from tests.whole.commands import PATIENCE, command, fresh_process, kept_open, served

DEMO = "listen: {port: 0, drain: 5}\nupstreams: {demo: {demo: {delay: 0.02}}}\nchains: {chat: []}\n"


def at(url: str) -> str:
    """A configuration like `DEMO` with this Ollama as its upstream."""
    return DEMO.replace("demo: {demo: {delay: 0.02}}", f"local: {{ollama: '{url}'}}").replace("drain: 5", "drain: 60")


async def test_the_banner_says_what_runs_and_a_request_is_answered(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("plugins: {retry: {}}\nchains: {chat: [retry]}\n")
    said = ("serve", "--demo", "--port", "0", "--config", str(tmp_path / "c.yaml"))
    async with served(*said, begin=fresh_process) as serving:
        await serving.until("no keys")
        assert (
            "upstream local: simulated, with the models demo, demo-rendered, demo-thinking, demo-vision, demo-embed\n"
            in serving.banner
        )
        assert "chain chat: client -> retry -> upstream" in serving.banner
        async with aiohttp.ClientSession() as http:
            answer = await (await http.post(f"{serving.url}/v1/chat/completions", json=ASK)).json()
            assert "simulated" in answer["choices"][0]["message"]["content"]
        line = await serving.until("path=/v1/chat/completions")
        assert "model=demo" in line and "status=200" in line


async def test_without_ollama_the_banner_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("listen: {port: 0}\nupstreams: {a: {ollama: 'http://127.0.0.1:9'}}\nchains: {}\n")
    async with served("serve", "--config", str(tmp_path / "c.yaml")) as serving:
        assert "ollama serve" in await serving.until("No upstream answers")


async def test_the_banner_names_each_unreachable_host_and_suggests_ollama_only_for_an_ollama_upstream(
    tmp_path: Path,
) -> None:
    (tmp_path / "c.yaml").write_text(
        "listen: {port: 0, base_path: /llm}\nupstreams: {a: {openai: ['http://127.0.0.1:9/v1', 'http://127.0.0.1:7/v1']}}\n"
        "chains: {}\n"
    )
    async with served("serve", "--config", str(tmp_path / "c.yaml")) as serving:
        assert "ollama serve" not in await serving.until("No upstream answers")
        assert "/llm/v1 " in serving.banner
        for port in (9, 7):
            told = f"  upstream a: http://127.0.0.1:{port}/v1 cannot be reached: connection refused.\n"
            assert told in serving.banner


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_missing_alias_target_and_a_dead_upstream_are_logged_as_warnings(tmp_path: Path, workers: int) -> None:
    file = tmp_path / "c.yaml"
    text = (
        DEMO.replace("port: 0", f"port: 0, workers: {workers}") + "models: {gpt: {alias: nobody}, ok: {alias: demo}}\n"
    )
    file.write_text(text)
    async with served("serve", "--config", str(file)) as serving:
        lost = "warning models.gpt: no upstream lists 'nobody', whose alias it is"
        if lost not in serving.banner:  # a worker may log it before the supervisor's banner
            await serving.until(lost)
        file.write_text(text.replace("{demo: {demo: {delay: 0.02}}}", "{a: {ollama: ['http://127.0.0.1:9']}}"))
        await serving.until("warning upstream a does not answer: http://127.0.0.1:9 cannot be reached")
        assert "models.ok" not in serving.banner and serving.banner.count("models.gpt") == 1


async def test_stopping_lets_streams_finish_and_ends_cleanly(tmp_path: Path) -> None:
    stall = Fault("stall", after=1, until=(go := asyncio.Event()))
    (env, more), file = kept_open(tmp_path), tmp_path / "c.yaml"
    async with running(Simulator(faults=[stall])) as url, aiohttp.ClientSession() as http:
        file.write_text(more + at(url))
        async with served("serve", "--config", str(file), env=env) as serving:
            answer = await http.post(f"{serving.url}/v1/chat/completions", json={**ASK, "stream": True})
            await answer.content.readline()
            serving.process.send_signal(signal.SIGTERM)
            await serving.until("stopping once the calls under way")
            ready = await http.get(f"{serving.url}/readyz")
            assert (ready.status, (await ready.json())["status"]) == (503, "stopping")
            go.set()
            assert (await answer.text()).endswith("data: [DONE]\n\n")
            assert await asyncio.wait_for(serving.process.wait(), PATIENCE) == 0


async def test_a_call_cut_off_by_shutdown_ends_with_the_error_server_stopped(tmp_path: Path) -> None:
    ollama, file = Simulator(faults=[Fault("stall", after=1, times=2)]), tmp_path / "c.yaml"
    async with AsyncExitStack() as stack:
        file.write_text(at(await stack.enter_async_context(running(ollama))).replace("drain: 60", "drain: 0.2"))
        serving = await stack.enter_async_context(served("serve", "--config", str(file)))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        url = f"{serving.url}/v1/chat/completions"
        asking = asyncio.ensure_future(http.post(url, json={**ASK, "max_tokens": 500}))
        answer = await http.post(url, json={**ASK, "stream": True})
        await answer.content.readuntil(b"\n\n")
        await ollama.until(lambda: ollama.running == 2)
        serving.process.send_signal(signal.SIGTERM)
        last = (await answer.text()).rstrip().rpartition("data: ")[2]
        assert json.loads(last)["error"]["code"] == "server_stopped"
        whole = await asking
        assert (whole.status, (await whole.json())["error"]["code"]) == (503, "server_stopped")
        assert whole.headers["retry-after"] == "1" and whole.headers["x-request-id"]
        assert await asyncio.wait_for(serving.process.wait(), PATIENCE) == 0
        lines = [
            line for line in (await serving.rest()).splitlines() if f"path={url.removeprefix(serving.url)}" in line
        ]
        assert sorted(word for line in lines for word in line.split() if word.startswith(("status=", "error="))) == [
            "error=server_stopped", "error=server_stopped", "status=200", "status=503",
        ]  # fmt: skip


async def test_ctrl_c_while_waiting_for_the_database_exits_without_a_traceback(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen: nothing answers
        url = f"postgresql://u:p@127.0.0.1:{silent.getsockname()[1]}/x"
        (tmp_path / "c.yaml").write_text(
            f"database: {{url: '{url}'}}\nplugins: {{usage: {{}}}}\nchains: {{chat: [usage]}}\n"
        )
        async with served("serve", "--demo", "--config", str(tmp_path / "c.yaml"), first="does not answer") as serving:
            serving.process.send_signal(signal.SIGINT)
            assert "Traceback" not in await serving.rest()
            assert await serving.process.wait() == 130


async def test_a_server_without_its_database_fails_with_its_url_and_the_remedy(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.build.PATIENCE", 0.05)
    text = "database: {url: 'postgresql://u:s3cret@127.0.0.1:9/x'}\nplugins: {usage: {}}\nchains: {chat: [usage]}\n"
    with pytest.raises(ConfigError) as failed:
        async with start(text):
            pass
    (problem,) = failed.value.problems
    assert "postgresql://u:***@127.0.0.1:9/x does not answer" in problem and "`database: {url: …}`" in problem


async def test_sighup_while_waiting_for_the_database_is_ignored(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"postgresql://u:p@127.0.0.1:{silent.getsockname()[1]}/x"
        (tmp_path / "c.yaml").write_text(
            f"database: {{url: '{url}'}}\nplugins: {{usage: {{}}}}\nchains: {{chat: [usage]}}\n"
        )
        async with served("serve", "--demo", "--config", str(tmp_path / "c.yaml"), first="does not answer") as serving:
            serving.process.send_signal(signal.SIGHUP)
            serving.process.send_signal(signal.SIGINT)
            await serving.rest()
            assert await serving.process.wait() == 130, "SIGINT must end it, not SIGHUP"


async def test_sighup_during_the_imports_is_ignored() -> None:
    code = """
import os, signal, sys
from proxy.__main__ import main


class Hangup:
    def find_spec(self, name, *_):
        if name == "proxy.cli":
            os.kill(os.getpid(), signal.SIGHUP)


sys.meta_path.insert(0, Hangup())
sys.argv = ["gemmapy-proxy", "serve", "--help"]
main()
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 0 and b"--demo" in out


async def test_a_changed_file_and_sighup_trigger_a_reload(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(DEMO)
    async with served("serve", "--config", str(file)) as serving, aiohttp.ClientSession() as http:
        file.write_text(DEMO.replace("chat: []", "embeddings: []"))
        await serving.until("was reloaded")
        assert (await http.post(f"{serving.url}/v1/chat/completions", json=ASK)).status == 404
        file.write_text(DEMO.replace("chat: []", "chat: [nothing]"))
        await serving.until(r"c\.yaml:3: chains\.chat\.0: 'nothing' is not under plugins")
        await serving.until("the configuration is unchanged")
        serving.process.send_signal(signal.SIGHUP)
        await serving.until("the configuration is unchanged")


async def test_a_port_in_use_is_a_clear_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        status, _, err = await command("serve", "--demo", "--port", port)
        assert status == 1 and f"cannot listen on 127.0.0.1:{port}" in err and "choose another port with --port" in err
        assert (await command("simulate", "--port", port))[2] == err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["serve", "--demo", "--port", "99999"], "--port: Input should be less than or equal to 65535"),
        (["serve", "--demo", "--port", "-1"], "--port: Input should be greater than or equal to 0"),
        (["serve", "--demo", "--host", ""], "--host: String should have at least 1 character"),
        (["simulate", "--port", "99999"], "--port: Input should be less than or equal to 65535"),
        (["simulate", "--delay", "-1"], "--delay: Input should be greater than or equal to 0"),
        (["simulate", "--load-time", "soon"], "--load-time: Input should be a valid number"),
    ],
)
def test_an_invalid_argument_is_refused(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and told in capsys.readouterr().err


async def test_a_public_address_without_keys_is_refused() -> None:
    status, _, err = await command("serve", "--demo", "--host", "0.0.0.0", "--port", "0")
    assert status == 1 and "--insecure" in err and "Traceback" not in err


async def test_check_says_how_callers_are_authenticated(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("chains: {chat: []}\n")
    _, open_to_all, _ = await command("check", str(file))
    assert "keys: none, everybody on this machine may do everything" in open_to_all
    file.write_text("chains: {chat: []}\naccounts: {}\ndatabase: {url: 'sqlite:///x.db'}\n")
    _, guarded, _ = await command("check", str(file))
    assert "accounts: on" in guarded and "keys: none" not in guarded


@pytest.mark.parametrize("words", [["serve"], ["check"], ["keys"], ["keys", "create"], ["documents", "add"], ["top"]])
async def test_a_commands_help_says_what_it_does(words: list[str]) -> None:
    status, said, _ = await command(*words, "--help")
    usage, what, *_ = said.split("\n\n")
    assert status == 0 and usage.startswith("usage:")
    assert what[0].isupper() and what.endswith("."), what


async def test_check_prints_the_chains_or_every_problem(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("plugins: {retry: {}}\nchains: {chat: [retry], embeddings: []}\nkeys: {a: a-key-that-is-long}\n")
    said = [
        f"{file}: ok",
        "upstream local: http://127.0.0.1:11434",
        "keys: 1",
        "chain chat: client -> retry -> upstream",
        "chain embeddings: client -> upstream",
    ]
    assert await command("check", str(file)) == (0, "\n".join(said) + "\n", "")
    file.write_text("plugins:\n  retry: {attempts: none}\nchains: {chat: [retyr]}\n")
    status, out, err = await command("check", str(file))
    assert (status, out) == (1, "")
    assert err.splitlines() == [
        f"{file}:2: plugins.retry.attempts: this should be a whole number, not 'none' "
        "(Maximum tries of a call, including the first)",
        f"{file}:3: chains.chat.0: 'retyr' is not under plugins; did you mean 'retry'?",
    ]


async def test_check_warns_about_a_probable_mistake(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "upstreams: {a: {ollama: 'http://h', slots: 2}, b: {ollama: ['http://h', 'http://i']}}\nchains: {}\n"
    )
    status, _, err = await command("check", str(file))
    assert (status, err) == (0, f"{file}: http://h is a host of a and of b, each of which counts its `slots` alone\n")


async def test_a_missing_file_named_by_the_environment_is_a_clear_error() -> None:
    status, _, err = await command("serve", env={"GEMMAPY_CONFIG": "/nowhere/my.yaml"})
    assert (status, err) == (
        1,
        "/nowhere/my.yaml, which GEMMAPY_CONFIG names, does not exist; unset it, or pass --config FILE\n",
    )


def test_the_internal_worker_command_is_not_listed(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["sevre"]):
        with pytest.raises(SystemExit):
            main(arguments)
    said = capsys.readouterr()
    assert "worker" not in said.out + said.err and "serve" in said.err


async def test_a_simulated_ollama_runs_on_its_own() -> None:
    async with served("simulate", "--port", "0") as serving, aiohttp.ClientSession() as http:
        tags = await (await http.get(f"{serving.url}/api/tags")).json()
        assert "demo:latest" in [model["name"] for model in tags["models"]]


async def test_the_schema_is_json() -> None:
    status, out, _ = await command("schema")
    assert status == 0 and "chains" in json.loads(out)["properties"]


async def test_logs_are_json_if_configured(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(DEMO + "log: {format: json}\n")
    async with served("serve", "--config", str(tmp_path / "c.yaml")) as serving, aiohttp.ClientSession() as http:
        await http.post(f"{serving.url}/v1/chat/completions", json=ASK)
        line = json.loads(await serving.until('"path"'))
        assert (line["status"], line["caller"], line["model"]) == (200, "anonymous", "demo:latest")
