"""The files with counts, on a disk that fills up."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict

from plugins.metrics.files import FIRST, Filled
from tests.conftest import ASK, Start

CONFIG = "plugins: {metrics: {}}\nchains: {chat: [metrics]}\n"


def has_all_its_bytes(path: Path) -> bool:
    return path.stat().st_blocks * 512 >= path.stat().st_size > 0


def no_room(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_files_space_is_allocated_when_it_is_created(tmp_path: Path) -> None:
    path = tmp_path / "counter_0.db"
    with closing(Filled(str(path))) as counts:
        assert has_all_its_bytes(path)
        for number in range(200):
            counts.write_value(f"{number}{'x' * 900}", number, 0.0)  # type: ignore[no-untyped-call]
    assert path.stat().st_size > 2 * FIRST and has_all_its_bytes(path)
    found = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
    assert [value for _, value, _, _ in found] == list(range(200))


def test_a_full_disk_does_not_damage_existing_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "counter_0.db"
    with monkeypatch.context() as full:
        full.setattr(os, "write", no_room)
        with pytest.raises(OSError, match="No space"):
            Filled(str(path))
    assert not path.exists()  # a file without its header would break the collection of counts
    with closing(Filled(str(path))) as counts:
        counts.write_value("one", 1.0, 0.0)  # type: ignore[no-untyped-call]
        with monkeypatch.context() as full:
            full.setattr(os, "write", no_room)
            with pytest.raises(OSError, match="No space"):
                counts.write_value("x" * FIRST, 1.0, 0.0)  # type: ignore[no-untyped-call]
            counts.write_value("one", 2.0, 0.0)  # type: ignore[no-untyped-call]
        counts.write_value("x" * FIRST, 3.0, 0.0)  # type: ignore[no-untyped-call]
        assert [value for _, value, _ in counts.read_all_values()] == [2.0, 3.0]  # type: ignore[no-untyped-call]


async def test_a_failure_to_count_fails_no_call_and_is_logged_once(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from plugins.metrics.instruments import Instruments

    monkeypatch.setattr(Instruments, "ended", no_room)
    async with start(CONFIG) as run:
        for _ in range(2):
            async with run.http.post(f"{run.url}/v1/chat/completions", json=ASK) as answer:
                assert answer.status == 200
        await run.settled()
    assert caplog.text.count("some calls are missing in the metrics") == 1 and "Traceback" not in caplog.text
