"""The spending of budgets by counter and period, so that it survives a restart."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import BigInteger, Column, MetaData, Table, Text

from proxy.sql.feature import Feature

FEATURE = Feature("limits", Path(__file__).parent / "migrations")

SPENT = Table(
    "limits_spent",
    MetaData(),
    Column(
        "counter", Text, primary_key=True
    ),  # the rule, the subject, what is counted, and the day or month; or a process
    Column("begins", BigInteger, nullable=False),  # microseconds since 1970 UTC
    Column("spent", BigInteger, nullable=False),  # tokens, or billionths of the currency's unit
)
