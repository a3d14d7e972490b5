"""The caller for whom calls on behalf of documents are counted."""

from __future__ import annotations

from typing import NamedTuple


class Payer(NamedTuple):
    """A caller, and the id of the API key of the request; "" if there was none.

    A job keeps its key even if that is revoked meanwhile: its budget also applies to the rest of the work.
    """

    name: str
    key: str = ""
