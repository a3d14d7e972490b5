"""Several workers behave like one server, whatever happens to one of them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from proxy.upstreams.demo import Fault, Simulator, running
from tests.conftest import ASK
from tests.whole.commands import PATIENCE, Serving, command, kept_open, served

TWO = "listen: {port: 0, drain: 5, workers: 2}\nupstreams: {demo: {demo: {delay: 0.002}}}\nchains: {chat: []}\n"
NO_CHAT = TWO.replace("chat: []", "embeddings: []")
WRONG = TWO.replace("chat: []", "chat: [nothing]")
PLUGIN = """from proxy.config import Strict
from proxy.errors import ConfigError


class Picky:
    class Settings(Strict):
        refused: tuple[int, ...] = ()

    def __init__(self, settings, host):
        self.refuses = host.services.worker_info.index in settings.refused

    async def __aenter__(self):
        if self.refuses:
            raise ConfigError(["its store cannot be opened"])

    async def __aexit__(self, *_):
        pass

    async def __call__(self, call, call_next):
        return await call_next(call)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(TWO)
    return path


def write_file(file: Path, text: str | None) -> None:
    file.write_text(text) if text is not None else file.unlink()


@asynccontextmanager
async def two_workers(file: Path, **options: Any) -> AsyncIterator[Serving]:
    async with served("serve", "--config", str(file), **options) as serving:
        yield serving


@asynccontextmanager
async def draining_workers(file: Path, ollama: Simulator, more: str = "", **options: Any) -> AsyncIterator[Serving]:
    """Two workers in front of this Ollama, which on a stop wait for their calls for up to ten minutes."""
    async with running(ollama) as url:
        there = TWO.replace("demo: {demo: {delay: 0.002}}", f"local: {{ollama: '{url}'}}")
        write_file(file, more + there.replace("drain: 5", "drain: 600"))
        async with two_workers(file, **options) as serving:
            yield serving


def pids(serving: Serving) -> dict[int, int]:
    """Each worker's process ID, by its number, as last logged."""
    found = re.findall(r"worker (\d+) is ready \(process (\d+)\)", serving.banner)
    return {int(index): int(pid) for index, pid in found}


async def ask(serving: Serving, request_id: str = "", **body: Any) -> int:
    """The status of a call on a new connection."""
    async with (
        aiohttp.ClientSession(headers={"X-Request-Id": request_id}) as http,
        http.post(f"{serving.url}/v1/chat/completions", json={**ASK, **body}) as answer,
    ):
        await answer.read()
        return answer.status


async def ask_each(serving: Serving) -> Counter[int]:
    """Counts of statuses; connections go to the workers in turn, so that every worker gets some."""
    return Counter(await asyncio.gather(*(ask(serving) for _ in range(4))))


class Client:
    """Calls again and again on one kept-alive connection, for whole answers or streams."""

    def __init__(self, serving: Serving, name: int) -> None:
        self.serving = serving
        self.name = f"c{name}"
        self.stream = bool(name % 2)
        self.asked: list[str] = []
        self.failed: list[str] = []

    async def run(self, enough: Callable[[], bool]) -> None:
        async with aiohttp.ClientSession() as http:
            while not enough():
                self.asked.append(f"{self.name}.{len(self.asked)}")
                try:
                    await self.ask(http, self.asked[-1])
                except (aiohttp.ClientError, AssertionError):
                    self.failed.append(self.asked[-1])

    async def ask(self, http: aiohttp.ClientSession, request_id: str) -> None:
        body, headers = {**ASK, "stream": self.stream}, {"X-Request-Id": request_id}
        async with http.post(f"{self.serving.url}/v1/chat/completions", json=body, headers=headers) as answer:
            text = await answer.text()
            assert answer.status == 200
            assert text.endswith("data: [DONE]\n\n" if self.stream else "}")


@asynccontextmanager
async def load(serving: Serving, count: int = 16) -> AsyncIterator[list[Client]]:
    """Clients that call until the block is left."""
    enough = asyncio.Event()
    clients = [Client(serving, name) for name in range(count)]
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.run(enough.is_set))
        async with asyncio.timeout(PATIENCE):
            while min(len(client.asked) for client in clients) < 3:  # noqa: ASYNC110  (no event)
                await asyncio.sleep(0.05)
        yield clients
        enough.set()


async def stopped(serving: Serving) -> str:
    """Stop the server, check its exit status, and return all its output."""
    serving.process.send_signal(signal.SIGTERM)
    written = await serving.rest()
    assert await serving.process.wait() == 0
    return written


async def until_process_ends(pid: int) -> None:
    try:
        number = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(number, ended.set)
    await asyncio.wait_for(ended.wait(), PATIENCE)
    asyncio.get_running_loop().remove_reader(number)
    os.close(number)


@pytest.fixture(scope="module")
def shared_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shared") / "c.yaml"
    path.write_text(TWO)
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(shared_file: Path) -> AsyncIterator[Serving]:
    """One server for all tests that do not change it."""
    async with two_workers(shared_file) as serving:
        await serving.until("2 workers")
        yield serving


@pytest.mark.asyncio(loop_scope="module")
async def test_connections_are_distributed_evenly(shared: Serving) -> None:
    for number in range(8):
        assert await ask(shared, f"even-{number}", max_tokens=1) == 200
    while len(lines := re.findall(r"id=even-\d .* worker=(\d)", shared.banner)) < 8:
        await shared.until("even")
    assert Counter(lines) == {"0": 4, "1": 4}
    assert shared.banner.count("listens on") == 1


@pytest.mark.asyncio(loop_scope="module")
async def test_a_second_server_on_the_port_is_a_clear_error(shared: Serving, shared_file: Path, tmp_path: Path) -> None:
    port = shared.url.rpartition(":")[2]
    (tmp_path / "one.yaml").write_text(TWO.replace("workers: 2", "workers: 1"))
    files = (shared_file, tmp_path / "one.yaml")
    told = f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another port with --port\n"
    seconds = [command("serve", "--config", str(file), "--port", port) for file in files]
    assert await asyncio.gather(*seconds) == [(1, "", told)] * 2


@pytest.mark.asyncio(loop_scope="module")
async def test_workers_ignore_signals_sent_to_them(shared: Serving) -> None:
    for pid in pids(shared).values():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
    assert await ask_each(shared) == {200: 4}
    await shared.until("worker=")
    assert "another one starts" not in shared.banner and "reloaded" not in shared.banner


async def test_workers_divide_the_slots_of_a_host(file: Path) -> None:
    ollama = Simulator(faults=[Fault("stall", times=100)], parallel=8)
    async with running(ollama) as url:
        write_file(file, TWO.replace("demo: {demo: {delay: 0.002}}", f"local: {{ollama: '{url}', slots: 3}}"))
        async with two_workers(file) as serving:
            asking = [asyncio.ensure_future(ask(serving)) for _ in range(8)]
            while ollama.running < 3 and len(asking) < 60:  # the system chooses which worker accepts a connection
                await asyncio.sleep(0.1)
                asking.append(asyncio.ensure_future(ask(serving)))
            await asyncio.sleep(0.1)
            assert ollama.running == 3, "two in one worker and one in the other"
            for one in asking:
                one.cancel()
            await asyncio.gather(*asking, return_exceptions=True)


async def test_a_killed_worker_loses_only_its_own_calls_and_is_restarted(file: Path) -> None:
    async with two_workers(file) as serving:
        async with load(serving) as clients:
            before = [len(client.asked) for client in clients]
            os.kill(pids(serving)[1], signal.SIGKILL)
            assert await asyncio.gather(*(ask(serving, max_tokens=1) for _ in range(20))) == [200] * 20
            await serving.until("worker 1 was killed by SIGKILL; another one starts in 0.5 s")
            await serving.until("worker 1 is ready")
            assert await ask_each(serving) == {200: 4}
        written = await stopped(serving)
        worker_of = dict(re.findall(r"id=(c\S+) .* worker=(\d)", written))
        assert sum(map(len, [client.failed for client in clients])) > 0
        for client, asked in zip(clients, before, strict=True):
            own = client.asked[asked - 2] if asked > 1 else ""
            assert len(client.failed) <= 1
            assert not client.failed or worker_of.get(own, "1") == "1"


async def test_a_new_worker_has_the_last_good_configuration(file: Path) -> None:
    async with two_workers(file) as serving:
        write_file(file, NO_CHAT)
        serving.process.send_signal(signal.SIGHUP)
        await serving.until("was reloaded")
        write_file(file, "chains: {")
        serving.process.send_signal(signal.SIGHUP)
        await serving.until("the configuration is unchanged")
        write_file(file, None)
        os.kill(pids(serving)[0], signal.SIGKILL)
        await serving.until("worker 0 is ready")
        assert await ask_each(serving) == {404: 4}


async def test_sighup_reloads_all_workers_or_none_and_logs_a_problem_once(file: Path) -> None:
    three = ("workers: 2", "workers: 3")
    write_file(file, TWO.replace(*three))
    async with two_workers(file) as serving:
        write_file(file, WRONG.replace(*three))
        serving.process.send_signal(signal.SIGHUP)
        await serving.until("the configuration is unchanged")
        assert await ask_each(serving) == {200: 4}
        write_file(file, NO_CHAT.replace("drain: 5", "drain: 6").replace(*three))
        serving.process.send_signal(signal.SIGHUP)
        await serving.until("was reloaded")
        assert await ask_each(serving) == {404: 4}
        written = await stopped(serving)
        for once in ("'nothing' is not under plugins", "is unchanged", "change of `listen`", "was reloaded"):
            # If the file is checked just before the signal, it is read twice; the workers themselves log no problem.
            assert 1 <= written.count(once) < 3, once


async def test_a_configuration_that_fails_in_one_worker_is_used_by_none(file: Path, tmp_path: Path) -> None:
    (tmp_path / "picky.py").write_text(PLUGIN)
    async with two_workers(file, env={"PYTHONPATH": str(tmp_path)}) as serving:
        plugins = "plugins: {picky: {use: 'picky:Picky', refused: [1]}}\n"
        write_file(new := tmp_path / "new.yaml", plugins + TWO.replace("chat: []", "embeddings: [picky]"))
        new.replace(file)  # an atomic change, noticed without a signal, which might make it read the file twice
        await serving.until("error worker 1: its store cannot be opened")
        await serving.until("the configuration is unchanged")
        assert await ask_each(serving) == {200: 4}


async def test_a_server_whose_workers_all_fail_to_start_exits(file: Path, tmp_path: Path) -> None:
    (tmp_path / "picky.py").write_text(PLUGIN)
    write_file(file, f"plugins: {{picky: {{use: 'picky:Picky', refused: [0, 1]}}}}\n{TWO}".replace("[]}", "[picky]}"))
    status, _, err = await command("serve", "--config", str(file), env={"PYTHONPATH": str(tmp_path)})
    assert status == 1 and "no worker could be started" in err
    assert "worker 1 ended with status 1; its store cannot be opened" in err and "Traceback" not in err


async def test_stopping_lets_streams_finish_and_no_worker_is_ready_meanwhile(file: Path) -> None:
    stall = Fault("stall", after=1, until=(go := asyncio.Event()))
    env, more = kept_open(file.parent)
    async with (
        draining_workers(file, Simulator(faults=[stall]), more, env=env) as serving,
        aiohttp.ClientSession() as http,
    ):
        answer = await http.post(f"{serving.url}/v1/chat/completions", json={**ASK, "stream": True})
        await answer.content.readline()
        serving.process.send_signal(signal.SIGTERM)
        assert "(1)" in await serving.until("stopping once the calls under way")
        for _ in range(4):
            async with aiohttp.ClientSession() as another, another.get(f"{serving.url}/readyz") as ready:
                assert (ready.status, (await ready.json())["status"]) == (503, "stopping")
        go.set()
        assert (await answer.text()).endswith("data: [DONE]\n\n")
        assert await asyncio.wait_for(serving.process.wait(), PATIENCE) == 0
        written = await serving.rest()
        assert written.count("stopping once") == 1 and "Traceback" not in written


async def test_a_second_signal_cancels_the_calls_under_way(file: Path) -> None:
    ollama = Simulator(faults=[Fault("stall", after=1)])
    async with draining_workers(file, ollama) as serving, aiohttp.ClientSession() as http:
        answer = await http.post(f"{serving.url}/v1/chat/completions", json={**ASK, "stream": True})
        await answer.content.readline()
        serving.process.send_signal(signal.SIGINT)
        await serving.until("stopping once the calls under way")
        serving.process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(serving.process.wait(), PATIENCE) == 0
        assert "calls that have not finished are ended now" in await serving.rest()


async def test_workers_finish_their_calls_and_exit_when_their_supervisor_is_killed(file: Path) -> None:
    write_file(file, TWO.replace("0.002", "0.02"))
    async with two_workers(file) as serving, aiohttp.ClientSession() as http:
        answer = await http.post(f"{serving.url}/v1/chat/completions", json={**ASK, "stream": True})
        await answer.content.readline()
        serving.process.kill()
        assert (await answer.text()).endswith("data: [DONE]\n\n")
        for pid in pids(serving).values():
            await until_process_ends(pid)


async def test_reloading_under_load_loses_no_call(file: Path) -> None:
    async with two_workers(file) as serving:
        async with load(serving) as clients:
            for number in range(3):
                write_file(file, f"{TWO}params: {'strict' if number % 2 else 'lenient'}\n")
                serving.process.send_signal(signal.SIGHUP)
                await serving.until("was reloaded")
        assert [client.failed for client in clients] == [[] for _ in clients]
        assert all(len(client.asked) > 1 for client in clients)
