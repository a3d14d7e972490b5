"""The tables of fine-tuning.  Times are microseconds since 1970 in UTC, 0 if not reached yet."""

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
"""status: as in OpenAI's API.

model: as it was requested.  tuned: the new model's name, fixed from the start.  gone: the new model was deleted.
hyper, metadata: JSON objects.  results: ids of files, separated by spaces.
code, error, param: why it failed.
holder: the process that has the lease, `until`: when that ends; server: the server that the process belongs to.
starts: how often its training was started; began: when it was last started.  done, total: steps of that training.
tokens: of its examples; trained: over all epochs.
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
"""sample: the number of the measurement, -1 for other events.  data: a JSON object, or empty."""

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
