"""Fixtures: a running server in front of a simulated Ollama, from the YAML of its plugins and chains; databases."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import ssl
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from plugins.timeouts import Watch, WatchTimer
from proxy import config as configuration
from proxy import registry
from proxy.clock import Clock
from proxy.config import Config
from proxy.edge import me
from proxy.edge.exchange import Exchange
from proxy.server import Server, serving, settle_down
from proxy.sql.database import Database
from proxy.sql.feature import Feature
from proxy.upstreams.demo import Simulator, running
from proxy.yamlfile import Source
from tests.clocks import put_forward
from tests.forks import OPEN
from tests.servers import TABLES, PostgresServer, in_memory, installed_postgres

HI = [{"role": "user", "content": "hi"}]
ASK: dict[str, Any] = {"model": "demo", "messages": HI}
TLS = ssl.create_default_context()  # shared: each client would otherwise spend 20 ms on reading all CA certificates
BARE = "chains: {chat: [], completions: [], embeddings: [], internal: []}"


@dataclass
class Running:
    """A running server, and the simulated Ollama behind it."""

    url: str
    ollama: Simulator
    server: Server
    http: aiohttp.ClientSession
    text: str
    clients: AsyncExitStack

    def client(self, **options: Any) -> openai.AsyncOpenAI:
        connections = openai.DefaultAsyncHttpxClient(verify=TLS)
        self.clients.push_async_callback(connections.aclose)
        mine = {"api_key": "none", "max_retries": 0, "http_client": connections}
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", **{**mine, **options})

    async def chat(self, **body: Any) -> aiohttp.ClientResponse:
        """The response to a chat call: `ASK`, with these fields added or replaced."""
        return await self.http.post(f"{self.url}/v1/chat/completions", json={**ASK, **body})

    async def embed(self, **body: Any) -> aiohttp.ClientResponse:
        return await self.http.post(f"{self.url}/v1/embeddings", json={"model": "demo-embed", "input": "hi", **body})

    async def settled(self) -> None:
        """Wait until no generation is in flight, so that a repeated call is a cache hit instead of sharing it."""
        async with asyncio.timeout(10):
            while self.server.services.state.get("cache flights"):  # noqa: ASYNC110  (there is no event)
                await asyncio.sleep(0.002)

    def configure(self, text: str) -> None:
        """Put this into the configuration file; `server.reload()` reads it."""
        self.text = text


def pytest_xdist_auto_num_workers() -> int:
    """More workers than cores, because many tests spend their time waiting."""
    return 3 * (os.cpu_count() or 1) // 2


def pytest_configure(config: pytest.Config) -> None:
    """Put the tests' files into memory if there is enough: waiting for a disk took a seventh of the tests' time.

    Set TMPDIR to keep the files for a look at them afterwards.
    """
    if "TMPDIR" not in os.environ and (place := in_memory()) is not None:
        folder = tempfile.mkdtemp(prefix="tests-", dir=place)
        os.chmod(folder, 0o711)  # for PostgreSQL's files: its server runs as another user than root
        os.environ["TMPDIR"] = tempfile.tempdir = folder  # for xdist's workers and for child processes, too
        config.add_cleanup(partial(shutil.rmtree, folder, ignore_errors=True))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Freeze the objects made by imports and collection, as a server does, so that the garbage collector skips them.

    Visiting a million of them took a seventh of the tests' time.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        settle_down()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow tests first, so that no core has to finish one alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


PATIENT = ("proxy.accounts.verified", "proxy.stores.disk", "plugins.cache.semantic.semantic", "plugins.limits.ledger")


@pytest.fixture(scope="session", autouse=True)
def long_time_limits() -> None:
    """Avoid time-outs on a busy machine; tests of time-outs set their own limits."""
    for name in PATIENT:
        setattr(import_module(name), "PATIENCE", 30.0)  # noqa: B010  (it is final to the type checker)


@pytest.fixture(scope="session", autouse=True)
def one_process() -> None:
    """Deleting a caller's data need not wait for other processes; tests with several set their own `LATE`."""
    me.LATE = 0.0


@pytest.fixture(scope="session", autouse=True)
def forking() -> Iterator[None]:
    """Close the forking processes here, because a worker of xdist exits without Python's clean-up."""
    with OPEN:
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """An installed PostgreSQL, which the first test that needs it starts."""
    with installed_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
async def new_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new database without tables: SQLite and PostgreSQL in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'records.db'}"
    return await (await running_postgres(request)).create(f"test_{uuid.uuid4().hex}")


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a new database with the empty tables of every feature: SQLite and PostgreSQL in turn.

    It is a copy: the migrations run once per process, because they took a quarter of each test's time.
    """
    if request.param == "sqlite":
        if not (made := tmp_path_factory.getbasetemp() / "tables.db").exists():
            await migrate(f"sqlite:///{made}")
        shutil.copyfile(made, file := tmp_path / "records.db")
        return f"sqlite:///{file}"
    server = await running_postgres(request)
    if not server.ready:
        await migrate(await server.create(TABLES))
        server.ready = True
    return await server.create(f"test_{uuid.uuid4().hex}", TABLES)


async def running_postgres(request: pytest.FixtureRequest) -> PostgresServer:
    server: PostgresServer = request.getfixturevalue("postgres")
    if server.process is None:
        await server.start()
    return server


async def migrate(url: str) -> None:
    """Create the tables of every feature."""
    database = Database(url, 1, 10)
    for folder in sorted(Path(registry.__file__).parents[1].glob("p*/*/migrations")):
        await database.migrate(Feature(folder.parent.name, folder))
    await database.aclose()


Start = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def start() -> Start:
    """start(yaml, simulator) -> Running.  Unless the YAML has `upstreams`, the simulator is the upstream."""

    @asynccontextmanager
    async def started(text: str = BARE, ollama: Simulator | None = None) -> AsyncIterator[Running]:
        ollama = ollama or Simulator()
        async with running(ollama) as upstream, aiohttp.ClientSession() as http, AsyncExitStack() as clients:
            run = Running("", ollama, None, http, text, clients)  # type: ignore[arg-type]  # filled in below

            def read() -> tuple[Config, Source]:
                return configuration.read("proxy.yaml", completed(run.text, upstream), registry.problems_of, {})

            async with serving(read, tell=in_log) as server:
                run.server, run.url = server, server.url
                yield run

    return started


class Late:
    """Late()(run): advances the server's clock past every limit of `timeouts` for the calls that wait by then."""

    def __init__(self) -> None:
        self.sweeps: list[WatchTimer] = []

    async def __call__(self, run: Running) -> None:
        # A wait begins when it has been checked once.
        await self.until(lambda watches: not any(one.fresh for one in watches))
        put_forward(run.server.services.clock, 3600.0)

    async def while_read(self, run: Running) -> None:
        """The same while no call waits for an upstream, because the clients have not read yet."""
        await self.until(lambda watches: not any(one.waiting for one in watches))
        put_forward(run.server.services.clock, 3600.0)
        for sweep in self.sweeps:
            sweep.look()

    async def until(self, so: Callable[[Sequence[Watch]], bool]) -> None:
        async with asyncio.timeout(30):
            while not (watches := [one for sweep in self.sweeps for one in sweep.watches]) or not so(watches):  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Late:
    limits = Late()

    class Noted(WatchTimer):
        def __init__(self, clock: Clock) -> None:
            super().__init__(clock)
            limits.sweeps.append(self)

    monkeypatch.setattr("plugins.timeouts.WatchTimer", Noted)
    return limits


def in_log(exchange: Exchange) -> None:
    """Log the requests through `logging`, so that pytest's `caplog` sees them."""
    told = exchange.log_fields()
    logging.getLogger("gemmapy.requests").info("%s", told, extra={"told": told})


def completed(text: str, upstream: str) -> str:
    """The configuration with defaults for tests, added after its own lines so that their numbers stay."""
    text = text.replace("$OLLAMA", upstream).rstrip() + "\n"
    if "upstreams:" not in text:
        text += f"upstreams: {{local: {{ollama: {upstream}}}}}\n"
    return text if "listen:" in text else text + "listen: {port: 0, drain: 1}\n"
