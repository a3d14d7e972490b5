"""The contract of a store of texts and their vectors."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from proxy.stores import lance
from proxy.stores.lance import Lance
from proxy.stores.vectors import Found, Row, Vectors, VectorsAway

WORDS = ("harbour", "lantern", "meadow", "quarry", "thimble")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Vectors]:
    store = Lance(str(tmp_path / "lance"))
    yield store
    await store.aclose()


def unit(*numbers: float) -> NDArray[np.float32]:
    raw = np.array(numbers, dtype=np.float32)
    made: NDArray[np.float32] = raw / np.linalg.norm(raw)
    return made


async def fill(store: Vectors, table: str = "t") -> None:
    rows = [Row(f"doc_{word}", 1, 0, f"The {word} was old.", "{}") for word in WORDS]
    await store.add(table, rows, np.eye(5, dtype=np.float32))


def documents(found: list[Found]) -> list[str]:
    return [one.row.document for one in found]


async def test_added_rows_are_found_at_once_by_vectors_and_by_words(store: Vectors) -> None:
    await fill(store)
    near = await store.nearest("t", unit(0, 1, 0.5, 0, 0), 2)
    assert documents(near) == ["doc_lantern", "doc_meadow"]
    assert near[0].score == pytest.approx(0.894, abs=0.001) and near[0].vector.tolist() == [0, 1, 0, 0, 0]
    assert near[0].row == Row("doc_lantern", 1, 0, "The lantern was old.", "{}")
    (only,) = await store.matching("t", "which quarries?", 3)
    assert only.row.document == "doc_quarry" and only.score > 0


async def test_a_search_can_be_limited_to_some_documents(store: Vectors) -> None:
    await fill(store)
    assert documents(await store.nearest("t", unit(1, 0, 0, 0, 0), 5, ["doc_meadow"])) == ["doc_meadow"]
    assert await store.matching("t", "harbour", 5, ["doc_meadow"]) == []
    assert await store.nearest("t", unit(1, 0, 0, 0, 0), 5, []) == []


async def test_removing_a_document_removes_its_versions(store: Vectors) -> None:
    await store.add("t", [Row("a", 1, 0, "one"), Row("a", 2, 0, "two"), Row("b", 1, 0, "one")], np.eye(3, dtype="f4"))
    await store.remove("t", "a", until=2)
    assert await store.counts("t") == {("a", 2): 1, ("b", 1): 1}
    assert (await store.count("t", "a", 2), await store.count("t", "a", 1), await store.count("u", "a", 1)) == (1, 0, 0)
    await store.remove("t", "a", 3, 9)
    await store.remove("t", "a")
    assert await store.counts("t") == {("b", 1): 1}


async def test_a_missing_table_is_empty(store: Vectors) -> None:
    assert await store.nearest("t", unit(1, 0), 3) == [] and await store.matching("t", "x", 3) == []
    assert await store.counts("t") == {}
    await store.remove("t", "a")
    await store.tend("t")
    await store.drop("t")
    await fill(store)
    assert list(await store.tables()) == ["t"]
    await store.drop("t")
    assert list(await store.tables()) == [] and await store.matching("t", "harbour", 3) == []


async def test_another_process_sees_added_rows_at_its_next_search(store: Vectors, tmp_path: Path) -> None:
    other = Lance(str(tmp_path / "lance"))
    await fill(store)
    assert len(await other.nearest("t", unit(1, 0, 0, 0, 0), 9)) == 5
    await store.add("t", [Row("new", 1, 0, "a chandelier")], np.eye(5, dtype="f4")[:1])
    assert documents(await other.matching("t", "chandelier", 3)) == ["new"]
    await store.remove("t", "new")
    assert await other.matching("t", "chandelier", 3) == []
    await other.aclose()


async def test_a_table_dropped_by_another_process_is_empty(store: Vectors, tmp_path: Path) -> None:
    other, question = Lance(str(tmp_path / "lance")), unit(1, 0, 0, 0, 0)
    asked: list[tuple[Callable[[], Awaitable[object]], object]] = [
        (lambda: store.nearest("t", question, 3), []),
        (lambda: store.matching("t", "harbour", 3), []),
        (lambda: store.count("t", "doc_harbour", 1), 0),
        (lambda: store.counts("t"), {}),
        (lambda: store.remove("t", "doc_harbour"), None),
        (lambda: store.tend("t"), None),
        (lambda: fill(store), None),
    ]
    for call, answer in asked:
        await fill(store)
        assert len(await store.counts("t")) == 5
        await other.drop("t")
        assert await call() == answer
    assert len(await store.counts("t")) == 5
    await other.aclose()


@pytest.mark.parametrize("vectors", [np.full((1, 5), np.nan), np.ones((1, 3))], ids=["no number", "another length"])
async def test_invalid_vectors_are_refused(store: Vectors, vectors: NDArray[np.float32]) -> None:
    await fill(store)
    with pytest.raises(VectorsAway):
        await store.add("t", [Row("x", 1, 0, "x")], vectors)
    assert len(await store.counts("t")) == 5


@pytest.mark.parametrize("name", ["", "a b", "a' OR true --", "../t"])
async def test_names_cannot_inject_expressions(store: Vectors, name: str) -> None:
    await fill(store)
    with pytest.raises(VectorsAway, match="is no name"):
        await store.matching("t", "harbour", 1, [name])
    with pytest.raises(VectorsAway, match="is no name"):
        await store.remove("t", name)
    with pytest.raises(VectorsAway, match="is no name"):
        await store.counts(name)


async def test_a_table_whose_creation_was_interrupted_gets_its_indices_later(
    store: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def cut_off(table: object) -> None:
        begun.set()
        await asyncio.sleep(60)

    with monkeypatch.context() as patch:
        patch.setattr(lance, "prepare", cut_off)
        making = asyncio.ensure_future(fill(store))
        await begun.wait()
        making.cancel()
        await asyncio.wait([making])
    await fill(store)
    assert documents(await store.matching("t", "which quarries?", 3)) == ["doc_quarry"]


async def test_a_large_table_is_indexed_with_the_same_results(store: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance, "INDEXED", 1000)
    chance = np.random.default_rng(1)
    vectors = chance.standard_normal((2000, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [Row(f"d{number}", 1, 0, f"text number{number}") for number in range(2000)]
    await store.add("t", rows, vectors)
    await store.tend("t")
    assert isinstance(store, Lance)
    table = await store.table("t")
    assert table is not None and {str(one.index_type) for one in await table.list_indices()} >= {"FTS", "IvfRq"}
    found = 0
    for question in vectors[:20]:
        true = {f"d{number}" for number in np.argsort(-(vectors @ question))[:10]}
        found += len(true & set(documents(await store.nearest("t", question, 10))))
    assert found >= 196
    assert documents(await store.matching("t", "number1234", 1)) == ["d1234"]
    among = [f"d{number}" for number in range(0, 2000, 100)]
    exact = sorted(range(0, 2000, 100), key=lambda number: -float(vectors[number] @ vectors[0]))
    assert documents(await store.nearest("t", vectors[0], 20, among)) == [f"d{number}" for number in exact]


async def test_concurrent_adding_searching_and_optimising(store: Vectors) -> None:
    async def one(number: int) -> None:
        await store.add("t", [Row(f"d{number}", 1, 0, f"word{number}")], np.eye(5, dtype="f4")[:1])
        await store.tend("t") if number % 5 == 0 else await store.matching("t", f"word{number}", 1)

    results = await asyncio.gather(*(one(number) for number in range(20)), return_exceptions=True)
    assert {type(result) for result in results} <= {type(None), VectorsAway}  # two optimisations may conflict
    assert len(await store.counts("t")) == 20


async def test_several_processes_that_create_one_table_lose_no_rows(tmp_path: Path) -> None:
    several = [Lance(str(tmp_path / "shared")) for _ in range(4)]
    lock, made = asyncio.Lock(), list[str]()

    @asynccontextmanager
    async def alone(name: str) -> AsyncIterator[None]:
        async with lock:
            made.append(name)
            yield

    for table in "abcdef":
        rows = [[Row(f"d{number}", 1, 0, "text")] for number in range(len(several))]
        adding = (
            one.add(table, some, np.eye(1, 5, dtype="f4"), alone) for one, some in zip(several, rows, strict=True)
        )
        await asyncio.gather(*adding)
        assert await several[0].counts(table) == {(f"d{number}", 1): 1 for number in range(len(several))}
    first = len(made)
    await several[0].add("a", [Row("e", 1, 0, "text")], np.eye(1, 5, dtype="f4"), alone)
    assert set(made) == set("abcdef") and len(made) == first, "adding to an existing table takes no lock"
    for one in several:
        await one.aclose()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_used_for_optimising_a_table_is_returned_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", TENDED], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 45  # 65 if nothing is returned


TENDED = """
import asyncio, resource, tempfile
import numpy as np
from pathlib import Path
from proxy.stores.lance import Lance
from proxy.stores.vectors import Row

async def main():
    with tempfile.TemporaryDirectory() as folder:
        store, chance, begun = Lance(folder), np.random.default_rng(1), 0
        for at in range(0, 20_000, 1000):
            vectors = chance.standard_normal((1000, 384), dtype=np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            texts = (" ".join(f"word{number * 7919 % 100_000}" for number in range(n * 50, n * 50 + 50))
                     for n in range(at, at + 1000))
            rows = [Row("a", 1, at + place, text) for place, text in enumerate(texts)]
            await store.add("t", rows, vectors)
            if at % 10_000 == 9000:
                await store.tend("t")
            begun = begun or memory()
        print((memory() - begun) // 1_000_000)
        await store.aclose()

def memory():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

asyncio.run(main())
"""
"""Prints by how many megabytes a process grew by adding to a table and optimising it, twice."""


def test_lancedb_is_imported_only_if_used() -> None:
    code = "import proxy.build, proxy.server, proxy.stores.lance, sys; print({'lancedb', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
