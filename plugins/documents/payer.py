"""Whom what the server asks for documents is counted for."""

from __future__ import annotations

from typing import NamedTuple


class Payer(NamedTuple):
    """A caller, and the id of the API key that the call or the document came with, "" where there was none.

    A key that is revoked meanwhile stays the one that began it: its budget holds for what is left to do, too.
    """

    name: str
    key: str = ""
