"""Pending rows are written at last, or their loss is logged."""

from __future__ import annotations

import asyncio
import logging

import pytest

from proxy.clock import Clock
from proxy.errors import Busy
from proxy.sql import backlog


class Marks(backlog.Backlog):
    what = "marks"

    def __init__(self, *troubles: Exception) -> None:
        super().__init__(Clock())
        self.troubles = list(troubles)
        self.waiting = 3
        self.written = asyncio.Event()

    @property
    def pending(self) -> int:
        return self.waiting

    async def flush(self) -> None:
        if self.troubles:
            raise self.troubles.pop(0)
        self.waiting = 0
        self.written.set()


async def test_a_single_exception_does_not_end_the_writing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "EVERY", 0.001)
    caplog.set_level(logging.INFO, backlog.__name__)
    marks = Marks(Busy("away"), Busy("away"), ValueError("odd"))
    task = asyncio.ensure_future(marks.run())
    async with asyncio.timeout(10):
        await marks.written.wait()
    task.cancel()
    told = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert told == [
        (logging.WARNING, "marks wait for the database (3 so far): away"),
        (logging.ERROR, "marks cannot be written"),
        (logging.INFO, "marks can be written again"),
    ]


async def test_closing_waits_for_the_database_but_not_for_ever(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "EVERY", 0.001)
    marks = Marks(*[Busy("away")] * 3)
    await marks.close(10)
    assert (marks.pending, caplog.text) == (0, "")
    marks = Marks(*[Busy("away")] * 100_000)
    await marks.close(0.05)
    assert "3 marks were not written: the database does not answer" in caplog.text
