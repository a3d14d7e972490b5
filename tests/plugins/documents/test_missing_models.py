"""Documents whose embedding model is missing: refused at once, or pending if that cannot be known yet."""

from __future__ import annotations

import json
from pathlib import Path

import aiohttp
import pytest

from plugins.documents import runner
from proxy.upstreams.demo import CATALOGUE, Simulator, running
from tests.conftest import Start
from tests.plugins.documents.asking import TEXTS, A, add, ask, config, titles
from tests.plugins.documents.test_jobs import WHO, until
from tests.servers import free_port


async def test_documents_for_a_missing_model_are_refused_and_leave_nothing(
    start: Start, database_url: str, tmp_path: Path
) -> None:
    text = config(database_url, tmp_path, embed="no-such-model")
    async with start(text) as run:
        for _ in range(2):
            told = await ask(run, "POST", "/documents", A, 404, title="T", content="text", wait=30)
            assert (told["error"]["code"], told["error"]["param"]) == ("model_not_found", "collection")
            assert "no-such-model" in told["error"]["message"]
        form = aiohttp.FormData({"collection": "default"})
        form.add_field("file", b"text", filename="a.txt")
        assert (await run.http.post(f"{run.url}/api/rag/documents", data=form, headers=A)).status == 404
        told = await ask(run, "POST", "/documents", A, 404, title="T", content="text", collection="other")
        assert told["error"]["code"] == "collection_not_found"
        for path in ("/documents", "/collections", "/jobs"):
            assert (await ask(run, "GET", path))["data"] == []
        run.configure(text.replace("no-such-model", "demo-embed"))
        assert await run.server.reload()
        await add(run, "Lanterns", TEXTS["Lanterns"])
        await ask(run, "POST", "/collections", A, 201, name="lost", embed="no-such-model")
        told = await ask(run, "POST", "/documents", A, 404, title="T", content="text", collection="lost")
        assert told["error"]["code"] == "model_not_found" and await titles(run, WHO) == ["Lanterns"]


async def test_pending_documents_fail_if_their_model_is_removed(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugins.documents.api.Documents.embeddable", nothing_known)
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path, embed="no-such-model")) as run:
        told = await ask(run, "POST", "/documents", A, 201, title="T", content="text", wait=30)
        assert told["status"] == "failed" and "no-such-model" in told["error"]


async def nothing_known(*_: object) -> None:
    """Nothing is known about the model, as while its upstream does not answer."""


async def test_a_document_waits_for_an_upstream_that_is_down(
    start: Start, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "PAUSES", (0.05,) * 200)
    port = free_port()
    away = f"upstreams: {{local: {{ollama: 'http://127.0.0.1:{port}'}}}}\n"
    async with start(config(database_url, tmp_path, away)) as run:
        told = await ask(run, "POST", "/documents", A, 202, title="T", content=TEXTS["Lanterns"], wait=0.2)
        assert told["status"] == "pending"
        async with running(Simulator(), port=port):

            async def ready() -> bool:
                return bool((await ask(run, "GET", f"/documents/{told['document_id']}"))["status"] == "ready")

            await until(ready)


async def test_a_model_that_a_plugin_of_the_chain_routes_elsewhere_is_accepted(start: Start, tmp_path: Path) -> None:
    """Only the chain knows the model; the upstream of its name does not have it."""
    fallback = {"models": {"demo-embed": [{"upstream": "other", "on": ["model_not_found"]}]}, "on": ["model_not_found"]}
    text = config(f"sqlite:///{tmp_path}/x.db", tmp_path).replace('"cache": {}', f'"fallback": {json.dumps(fallback)}')
    without = [one for one in CATALOGUE if not one.name.startswith("demo-embed")]
    async with running(Simulator(models=without)) as first, running(Simulator()) as second:
        hosts = f"upstreams: {{own: {{ollama: '{first}'}}, other: {{ollama: '{second}'}}}}\n"
        more = f"{hosts}models: {{demo-embed: {{upstream: own}}}}\n"
        async with start(text.replace('"cache"', '"fallback"') + more) as run:
            await add(run, "Lanterns", TEXTS["Lanterns"])
