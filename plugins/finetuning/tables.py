"""The tables of fine-tuning.  Times are microseconds since 1970 in UTC, and 0 where there is none yet."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import Column, ForeignKey, Index, Integer, MetaData, SmallInteger, String, Table, Text

from proxy.sql.columns import count, text
from proxy.sql.feature import Feature

FEATURE: Final = Feature("finetuning", Path(__file__).parent / "migrations")
METADATA: Final = MetaData()


JOBS: Final = Table(
    "finetuning_jobs",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("owner", Text, nullable=False),
    Column("status", String(20), nullable=False),
    *map(text, ("model", "trainer", "training_file", "validation_file", "tuned", "hyper", "metadata", "results")),
    count("seed"),
    *map(text, ("suffix", "code", "error", "param", "holder")),
    Column("server", String(64), nullable=False, server_default=""),
    Column("starts", Integer, nullable=False, server_default="0"),
    *map(count, ("tokens", "trained", "done", "total", "until", "at", "began", "ended")),
    Column("gone", SmallInteger, nullable=False, server_default="0"),
    Index("finetuning_jobs_owner", "owner", "at", "id"),
    Index("finetuning_jobs_status", "status", "at"),
)
"""status: OpenAI's words.

model: as it was asked for.  tuned: what its model is called, from the start.  gone: that model was deleted.
hyper, metadata: JSON objects.  results: ids of files, with spaces between.
code, error, param: why it failed.
holder: the process that does it, `until` when; server: that process and its siblings.
starts: how often its training was begun; began: when it was the last time.  done, total: steps of that.
tokens: of its examples; trained: of all epochs.
"""

EVENTS: Final = Table(
    "finetuning_events",
    METADATA,
    Column("job", String(64), ForeignKey("finetuning_jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    count("at"),
    Column("level", String(8), nullable=False),
    Column("sample", Integer, nullable=False, server_default="-1"),
    *map(text, ("message", "data")),
)
"""sample: which of a job's measurements it is, or -1.  data: a JSON object, or nothing."""

CHECKPOINTS: Final = Table(
    "finetuning_checkpoints",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("job", String(64), ForeignKey("finetuning_jobs.id", ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False),
    *map(count, ("step", "at")),
    text("metrics"),
    Index("finetuning_checkpoints_job", "job", "at", "id"),
)
