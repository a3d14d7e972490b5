"""A new model comes to all hosts of an upstream, or to none that would not have it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from proxy.config import Upstream
from proxy.errors import BadCall, NotFound, UpstreamError
from proxy.host import Background, Host, Services
from proxy.imports import NewModel
from proxy.upstreams.catalogue import Catalogue, ModelRules
from proxy.upstreams.demo import Fault, Simulator, running
from proxy.upstreams.imports import Importer, parameters_of
from proxy.upstreams.ollama import Ollama
from proxy.upstreams.pool import Pool
from tests.servers import free_port


class Told(list[str]):
    async def __call__(self, words: str) -> None:
        self.append(words)


@asynccontextmanager
async def importer(ollamas: Sequence[Simulator], away: bool = False) -> AsyncIterator[Importer]:
    """Of one upstream with these hosts, and one that is away."""
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(running(one)) for one in ollamas]
        urls += [f"http://127.0.0.1:{free_port()}"] if away else []
        http, background = await stack.enter_async_context(aiohttp.ClientSession()), Background()
        stack.push_async_callback(background.aclose)
        services = Services(http, background)
        stack.push_async_callback(services.opened.aclose)
        settings, settled = Upstream(ollama=tuple(urls)), ModelRules({})
        pool = Pool("local", [Ollama(url, settings, services, settled.pins) for url in urls], settings, services)
        pool.open()
        stack.callback(pool.close)
        catalogue = Catalogue(settled, {"local": pool}, {"local": settings})
        yield Importer(http, catalogue, {"local": pool}, "0123456789abcdef")


@pytest.fixture
def adapter(tmp_path: Path) -> NewModel:
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(300_000))
    return NewModel("ft-demo-1", "demo", tmp_path / "a.gguf", True)


def names(ollama: Simulator) -> set[str]:
    return {one.name.short for one in ollama.store.all()}


async def test_every_host_gets_it_and_the_file_once(adapter: NewModel) -> None:
    two, told = [Simulator(), Simulator()], Told()
    async with importer(two) as imports:
        assert await imports.create(adapter, told) == []
        assert all("ft-demo-1:latest" in names(one) for one in two)
        assert sum("Sending 300004 bytes" in one for one in told) == 2 and any(one.endswith("success") for one in told)
        assert (await imports.catalogue.info("ft-demo-1")) is not None  # at once
        await imports.create(adapter, told)
        assert sum("Sending" in one for one in told) == 2
        assert all(one.seen[-1].headers["Via"] == "1.1 gemmapy-0123456789abcdef" for one in two)
        await imports.remove("ft-demo-1", "demo")
        await imports.remove("ft-demo-1", "demo")
        assert not any("ft-demo-1:latest" in names(one) for one in two)


async def test_a_host_that_is_away_is_told_and_does_not_matter(adapter: NewModel) -> None:
    async with importer([Simulator()], away=True) as imports:
        (away,) = await imports.create(adapter, Told())
        assert "cannot be reached" in away
        await imports.check("demo", adapter=True)


async def test_only_hosts_that_have_the_base_get_it(adapter: NewModel) -> None:
    two = [Simulator(), Simulator()]
    two[1].store.remove(next(one.name for one in two[1].store.all() if one.name.model == "demo"))
    async with importer(two) as imports:
        (without,) = await imports.create(adapter, Told())
        assert "does not have 'demo" in without
        assert ["ft-demo-1:latest" in names(one) for one in two] == [True, False]
        assert not two[1].calls["/api/blobs/{digest}"]


@pytest.mark.parametrize(
    "fault", [Fault("error_line", after=1, path="/api/create"), Fault("status", status=500, path="/api/create")]
)
async def test_where_one_refuses_it_no_host_keeps_it(adapter: NewModel, fault: Fault) -> None:
    two = [Simulator(), Simulator(faults=[fault])]
    async with importer(two) as imports:
        with pytest.raises(UpstreamError, match="refuses the model") as found:
            await imports.create(adapter, Told())
        assert found.value.cause == "server" and found.value.code == "import_refused"
        assert not any("ft-demo-1:latest" in names(one) for one in two)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [(Fault("reset", after=1, path="/api/create"), "cut"), (Fault("garbage", path="/api/create"), "invalid_answer")],
)
async def test_a_host_that_breaks_off_or_talks_nonsense(adapter: NewModel, fault: Fault, cause: str) -> None:
    async with importer([Simulator(faults=[fault])]) as imports:
        with pytest.raises(UpstreamError) as found:
            await imports.create(adapter, Told())
        assert found.value.cause == cause


async def test_a_whole_model_takes_over_what_was_set_for_its_base(adapter: NewModel) -> None:
    ollama = Simulator()
    base = ollama.store.all()[-1]
    kept = replace(base, system="Be kind.", parameters={"stop": "<end>", "num_ctx": 4096})
    ollama.store.add(kept)
    async with importer([ollama]) as imports:
        whole = NewModel("ft-whole", kept.model.name, adapter.path, False)
        await imports.create(whole, Told())
        (made,) = [one for one in ollama.store.all() if one.name.model == "ft-whole"]
        assert (made.system, made.parameters) == ("Be kind.", {"stop": "<end>", "num_ctx": 4096})
        facts = await imports.facts("demo")
        assert facts["general.architecture"] == "llama" and facts["llama.attention.head_count_kv"] == 8


def test_parameters_as_they_are_shown() -> None:
    shown = 'stop    "<a>"\nstop  "b c"\nstop "d"\ntemperature 0.5\nmirostat_x\nnum_ctx 10'
    assert parameters_of(shown) == {
        "stop": ["<a>", "b c", "d"],
        "temperature": 0.5,
        "mirostat_x": "",
        "num_ctx": 10,
    }


async def test_upstreams_that_take_no_models(adapter: NewModel) -> None:
    async with importer([Simulator(version="0.35.0")]) as imports:
        with pytest.raises(BadCall, match=r"0\.34\.1"):
            await imports.check("demo", adapter=True)
        await imports.check("demo", adapter=False)
        with pytest.raises(NotFound):
            await imports.check("llama9", adapter=True)
    async with importer([], away=True) as imports:
        with pytest.raises(UpstreamError):
            await imports.check("demo", adapter=True)
    async with importer([Simulator()]) as imports:
        members: dict[str, Any] = imports.pools["local"].members
        members["http://vllm"] = object()
        with pytest.raises(BadCall, match="not on an Ollama"):
            await imports.create(adapter, Told())


async def test_without_upstreams_there_is_nothing_to_bring_a_model_to(adapter: NewModel) -> None:
    host = Host(Services(None, Background()), None, None, None, None, None)  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        await host.imports.create(adapter, Told())
    for asking in (host.imports.check("demo", True), host.imports.facts("demo"), host.imports.remove("x", "demo")):
        with pytest.raises(NotFound):
            await asking
