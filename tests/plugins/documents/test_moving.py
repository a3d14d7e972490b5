"""Collections moved to another model: always searchable, and always complete in the old or in the new table."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from plugins.documents import api, moving, plugin, repair
from plugins.documents.job_queue import JobQueue
from plugins.documents.moving import Moves
from plugins.documents.store import Item
from plugins.documents.tables import ITEMS
from proxy.stores.lance import Lance
from proxy.stores.vectors import Row
from proxy.upstreams.demo import CATALOGUE, Fault, Model, Simulator
from tests.conftest import Running, Start
from tests.plugins.documents.asking import TEXTS, A, B, add, ask, config, fill, titles
from tests.plugins.documents.test_jobs import WHO, until

OTHER = Model("other-embed:latest", frozenset({"embedding"}), context=2048, dimensions=256)
RED = "The lantern has a red lamp, and its keeper is Tom."


def ollama(*faults: Fault) -> Simulator:
    return Simulator(models=[*CATALOGUE, OTHER], faults=faults)


class Gate:
    """Replaces a method by one that waits until `open` is set, and then runs the original."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cls: type, name: str) -> None:
        self.reached, self.open = asyncio.Event(), asyncio.Event()
        self.told: tuple[Any, ...] = ()
        real = getattr(cls, name)

        async def waiting(*told: Any) -> Any:
            self.told = told
            self.reached.set()
            async with asyncio.timeout(30):
                await self.open.wait()
            return await real(*told)

        monkeypatch.setattr(cls, name, waiting)


async def move(run: Running, model: str = "other-embed", status: int = 202) -> Any:
    return await ask(run, "PUT", "/collections/default", A, status, embed=model)


async def ended(run: Running, job: str) -> Any:
    async def over() -> bool:
        return (await ask(run, "GET", f"/jobs/{job}"))["status"] not in ("queued", "running")

    await until(over)
    return await ask(run, "GET", f"/jobs/{job}")


async def test_a_collection_is_searchable_while_it_moves_and_complete_afterwards(
    start: Start, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, Moves, "swap")
    async with start(config(database_url, tmp_path), ollama()) as run:
        ids = await fill(run)
        told = await move(run)
        assert told["embed"] == "demo-embed" and told["moving"]["embed"] == "other-embed"
        await gate.reached.wait()
        job = await ask(run, "GET", f"/jobs/{told['moving']['job_id']}")
        assert (job["kind"], job["document_id"], job["status"]) == ("move", None, "running")
        assert job["total"] == sum(map(len, TEXTS.values()))
        await ask(run, "GET", f"/jobs/{job['job_id']}", B, 404)
        assert (await titles(run, WHO))[0] == "Lanterns"
        await ask(run, "PUT", f"/documents/{ids['Lanterns']}", A, 200, content=RED, wait=30)
        await ask(run, "DELETE", f"/documents/{ids['Orchards']}", A, 200)
        await add(run, "Bells", "The bell of the abbey is cracked.")
        gate.open.set()
        done = await ended(run, job["job_id"])
        assert (done["status"], done["progress"], done["done"]) == ("done", 1, done["total"])
        one = await ask(run, "GET", "/collections/default")
        assert (one["embed"], one["dimensions"], one["moving"]) == ("other-embed", 256, None)
        assert (await titles(run, "bell of the abbey"))[0] == "Bells"
        told = await ask(run, "POST", "/search", query=WHO, explain=True)
        assert told["results"][0]["content"] == RED and len(told["results"]) == 3
        assert {one["explain"]["vector_rank"] for one in told["results"]} == {1, 2, 3}
        assert (await move(run, status=200))["moving"] is None  # it has that model already


async def test_concurrent_notes_of_one_document_after_a_lost_lease_do_not_fail(
    start: Start, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, Moves, "swap")
    async with start(config(database_url, tmp_path), ollama()) as run:
        ids = await fill(run)
        await move(run)
        await gate.reached.wait()
        moves, _, one = gate.told
        async with moves.database.reading() as connection:
            query = select(ITEMS).where(ITEMS.c.id == ids["Lanterns"])
            item = Item(*(await connection.execute(query)).one())
        for _ in range(5):
            await moves.forget(one, [item.id])
            await asyncio.gather(*(moves.note(one, item, chunks) for chunks in range(1, 9)))
        assert (await moves.noted(one))[item.id, item.version] in range(1, 9)
        gate.open.set()


async def test_the_old_table_is_dropped_once_no_search_can_use_it(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "SWEEP", 0.05)
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path), ollama()) as run:
        await fill(run)
        await ended(run, (await move(run))["moving"]["job_id"])
        index = Lance(str(tmp_path / "lance"))
        assert len(list(await index.tables())) == 2
        monkeypatch.setattr(repair, "GRACE", 0.0)

        async def gone() -> bool:
            return len(list(await index.tables())) == 1

        await until(gone)
        assert len(await titles(run, WHO)) == 3
        await ask(run, "DELETE", "/collections/default", A, 200)
        assert list(await index.tables()) == []
        await index.aclose()


async def test_a_cancelled_or_failed_move_leaves_the_collection_unchanged(
    start: Start, database_url: str, tmp_path: Path
) -> None:
    stall = Fault("stall", path="/api/embed")
    async with start(config(database_url, tmp_path), ollama()) as run:
        await fill(run)
        told = await ended(run, (await move(run, "no-such-model"))["moving"]["job_id"])
        assert told["status"] == "failed" and "no-such-model" in told["error"]
        for back in (False, True):
            run.ollama.faults.append(stall)
            job = (await move(run))["moving"]["job_id"]
            await run.ollama.until(lambda: not run.ollama.faults, 10)
            await (move(run, "demo-embed", 200) if back else ask(run, "DELETE", f"/jobs/{job}", A, 200))
            assert (await ask(run, "GET", f"/jobs/{job}"))["status"] == "cancelled"
            one = await ask(run, "GET", "/collections/default")
            assert (one["embed"], one["moving"]) == ("demo-embed", None)
        assert len(await titles(run, WHO)) == 3
        run.ollama.faults.append(stall)
        first = (await move(run))["moving"]["job_id"]
        again = (await move(run))["moving"]["job_id"]
        assert first == again  # a second request changes nothing
        assert (await ask(run, "PUT", "/collections/default", A, 400, embed=""))["error"]["param"] == "embed"


async def test_a_move_continues_after_a_restart_from_its_verified_notes(
    start: Start, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = config(database_url, tmp_path)
    monkeypatch.setattr(moving, "SOME", 1)
    calls: list[str] = []
    real = Moves.note

    async def note(self: Moves, one: Any, item: Any, chunks: int) -> None:
        calls.append(item.title)
        await real(self, one, item, chunks)
        await asyncio.sleep(3600 if len(calls) == 2 else 0)

    monkeypatch.setattr(Moves, "note", note)
    async with start(text, ollama()) as run:
        ids = await fill(run)
        job = (await move(run))["moving"]["job_id"]
        await until(lambda: two(calls))
    index = Lance(str(tmp_path / "lance"))
    (old,) = [one["id"] for one in [await collection(index, ids)]]
    (onto,) = [name for name in await index.tables() if name != old]
    half = Row(ids[calls[0]], 7, 0, "Half\n\nThe keeper of the lantern is a ghost.", "[0,1,6,0,[]]")
    await index.add(onto, [half], np.eye(1, 256, dtype=np.float32))
    await index.remove(onto, ids[calls[1]])  # noted, then lost as in a power cut
    async with start(text, ollama()) as run:
        assert (await ended(run, job))["status"] == "done"
        assert calls[0] not in calls[1:] and calls[2:].count(calls[1]) == 1
        assert len(await titles(run, WHO)) == 3 and (await ask(run, "GET", "/stats"))["chunks"] == 3
        assert dict(await index.counts(onto)) == {(id, 1): 1 for id in ids.values()}
    await index.aclose()


async def two(calls: list[str]) -> bool:
    return len(calls) == 2


async def collection(index: Lance, ids: dict[str, str]) -> dict[str, str]:
    """The table that contains all of them."""
    for name in await index.tables():
        if len(await index.counts(name)) == len(ids):
            return {"id": name}
    raise AssertionError("there is none")


async def test_a_document_that_becomes_ready_after_the_move_is_indexed_in_the_new_table(
    start: Start, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(config(database_url, tmp_path), ollama()) as run:
        await fill(run)
        gate = Gate(monkeypatch, JobQueue, "finish")
        late = await ask(run, "POST", "/documents", A, 202, title="Late", content="A late bell rings.", wait=0)
        await gate.reached.wait()
        assert (await ended(run, (await move(run))["moving"]["job_id"]))["status"] == "done"
        gate.open.set()

        async def ready() -> bool:
            return bool((await ask(run, "GET", f"/documents/{late['document_id']}"))["status"] == "ready")

        await until(ready)
        told = await ask(run, "POST", "/search", query="late bell", explain=True)
        assert told["results"][0]["title"] == "Late" and told["results"][0]["explain"]["vector_rank"] == 1


async def test_nothing_is_added_to_a_collection_deleted_meanwhile(
    start: Start, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(config(database_url, tmp_path), ollama()) as run:
        await ask(run, "POST", "/collections", A, 201, name="short")
        gate = Gate(monkeypatch, api.Documents, "text")
        adding = asyncio.ensure_future(
            ask(run, "POST", "/documents", A, 404, title="x", content="y", collection="short")
        )
        await gate.reached.wait()
        await ask(run, "DELETE", "/collections/short", A, 200)
        gate.open.set()
        assert (await adding)["error"]["code"] == "collection_not_found"
        assert (await ask(run, "GET", "/documents"))["data"] == []
