"""Columns that many tables have."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Integer, Text

NUMBER: Final = BigInteger().with_variant(Integer, "sqlite")
"""The type of autoincrement columns, which in SQLite must be INTEGER."""


def text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False, server_default="")


def count(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default="0")


def maybe(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=True)
