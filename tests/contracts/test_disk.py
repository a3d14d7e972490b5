"""Specific to the store in a file: it survives restarts and crashes, stays small, and is replaced if corrupt."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from proxy.clock import Clock
from proxy.stores.disk import Disk
from proxy.stores.keyvalue import NewValue, StoreError
from tests.conftest import BARE, Start


async def test_a_disk_store_survives_a_restart_and_is_shared(tmp_path: Path) -> None:
    path = str(tmp_path / "cache.db")
    first = Disk(path, 1_000_000, Clock())
    await first.set([NewValue("a", b"1", 60)])
    second = Disk(path, 1_000_000, Clock())
    assert [found and found.value for found in await second.get(["a"])] == [b"1"]
    await second.set([NewValue("b", b"2", 60)])
    assert (await first.get(["b"]))[0] is not None
    await first.aclose()
    await second.aclose()
    third = Disk(path, 1_000_000, Clock())
    assert [one.key async for one in third.entries()] == ["a", "b"]
    await third.aclose()


async def test_a_file_that_is_not_a_store_is_renamed_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cache.db"
    path.write_bytes(b"this is no database" * 1000)
    store = Disk(str(path), 1_000_000, Clock())
    await store.set([NewValue("a", b"1", 60)])
    assert (await store.get(["a"]))[0] is not None
    await store.aclose()
    assert path.with_suffix(".unreadable").read_bytes().startswith(b"this is no database")
    assert "was renamed" in caplog.text


async def test_a_corrupt_file_is_renamed_and_replaced_once_detected(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cache.db"
    store, other = Disk(str(path), 10_000_000, Clock()), Disk(str(path), 10_000_000, Clock())
    await store.set([NewValue(f"{number}", b"x" * 3000, 60) for number in range(500)])
    await store.aclose()
    assert None not in await other.get(["0"])
    with path.open("r+b") as file:  # beyond the part that is read on opening
        file.seek(100 * 4096)
        file.write(b"?" * (path.stat().st_size - 100 * 4096))
    store = Disk(str(path), 10_000_000, Clock())
    for one in (store, other):
        with pytest.raises(StoreError, match="malformed"):
            await one.get([f"{number}" for number in range(500)])
        await one.set([NewValue(f"{id(one)}", b"1", 60)])
    assert None not in await store.get([f"{id(store)}", f"{id(other)}"])
    assert len([text for text in caplog.messages if "was renamed" in text]) == 1
    await store.aclose()
    await other.aclose()


WRITES = """
import asyncio, sys
from itertools import count
from proxy.clock import Clock
from proxy.stores.disk import Disk
from proxy.stores.keyvalue import NewValue

async def write():
    store = Disk(sys.argv[1], 1_000_000, Clock())
    for number in count():
        await store.set([NewValue(f"{number}", b"x" * 5000, 60)])
        print(number, flush=True)

asyncio.run(write())
"""


async def test_a_process_killed_while_writing_loses_no_completed_write(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    command = [sys.executable, "-c", WRITES, str(path)]
    writing = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert writing.stdout is not None
    async with asyncio.timeout(20):
        while (last := await writing.stdout.readline()) != b"300\n":  # after it has evicted a few times
            assert last
        writing.kill()
        *_, last = (await writing.stdout.read()).splitlines() or [b"300"]
        await writing.wait()
    store = Disk(str(path), 1_000_000, Clock())
    assert None not in await store.get([last.decode()])
    await store.aclose()
    with closing(sqlite3.connect(path)) as base:
        assert base.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert base.execute("SELECT (SELECT size FROM total) = (SELECT sum(size) FROM kept)").fetchone() == (1,)


async def test_a_disk_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Disk(str(tmp_path / "file" / "cache.db"), 1_000_000, Clock())
    with pytest.raises(StoreError, match="file"):
        await store.get(["a"])
    await store.aclose()


async def test_a_disk_store_stays_within_its_size_limit(tmp_path: Path) -> None:
    store = Disk(str(tmp_path / "cache.db"), 2_000_000, Clock())
    for number in range(200):
        await store.set([NewValue(f"{number}", b"x" * 50_000, 60)])
    await store.aclose()
    assert (tmp_path / "cache.db").stat().st_size <= 2_600_000


@pytest.mark.parametrize("size", [40, 2_053, 3_077, 6_000, 20_000])
async def test_a_file_never_fills_up_for_any_size_of_values(tmp_path: Path, size: int) -> None:
    """Rows take whole pages, so values slightly larger than half a page take twice their size."""
    store = Disk(str(tmp_path / "cache.db"), 2_000_000, Clock())
    for number in range(0, 4_000_000 // (size + 300), 50):
        await store.set([NewValue(f"{number + one}", b"x" * size, 60) for one in range(50)])
    newest = await store.get([f"{number + 49}"])
    await store.aclose()
    assert newest[0] is not None and (tmp_path / "cache.db").stat().st_size <= 2_700_000


async def test_several_values_for_one_key_in_a_batch_take_the_space_of_one(tmp_path: Path) -> None:
    store = Disk(str(tmp_path / "cache.db"), 1_000_000, Clock())
    await store.set([NewValue("other", b"kept", 60)])
    for _ in range(100):
        await store.set([NewValue("same", b"x" * 10_000, 60), NewValue("same", b"y" * 10_000, 60)])
    other, same = await store.get(["other", "same"])
    assert other is not None and same is not None and same.value == b"y" * 10_000
    await store.aclose()


async def test_a_closed_store_stays_closed(tmp_path: Path) -> None:
    store = Disk(str(tmp_path / "cache.db"), 1_000_000, Clock())
    await store.set([NewValue("a", b"1", 60)])
    await store.aclose()
    with pytest.raises(StoreError, match="closed"):
        await store.get(["a"])


async def test_a_file_locked_by_another_process_is_soon_an_error(tmp_path: Path) -> None:
    store = Disk(str(tmp_path / "cache.db"), 1_000_000, Clock())
    await store.set([NewValue("a", b"1", 60)])
    other = sqlite3.connect(tmp_path / "cache.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with asyncio.timeout(10):
        with pytest.raises(StoreError, match="locked"):
            await store.set([NewValue("b", b"1", 60)])
        assert (await store.get(["a"]))[0] is not None
    other.close()
    await store.aclose()


@pytest.mark.parametrize("kind", ["disk: {{path: {}}}", "lancedb: {}"])
async def test_a_store_whose_folder_cannot_be_created_is_logged_at_the_start(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    (tmp_path / "file").write_text("no folder")
    for name in ("file", "folder"):
        text = f"stores: {{kept: {{{kind.format(tmp_path / name / 'x')}}}}}\nupstreams: {{a: {{demo: {{}}}}}}\n"
        uses = "cache: {store: kept}" if "disk" in kind else "documents: {store: kept, embed: demo-embed}"
        async with start(f"{text}database: {{url: 'sqlite:///{tmp_path}/d.db'}}\nplugins: {{{uses}}}\n{BARE}"):
            pass
    (told,) = [one for one in caplog.messages if "cannot be kept" in one]
    assert f"'kept' cannot be kept in {tmp_path}/file/x: {tmp_path}/file cannot be written" in told
