"""What LanceDB says when something goes wrong, as errors of ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from proxy.stores.vectors import VectorsAway

SYSTEM: Final = re.compile(r"""([A-Z][\w' ]+) \(os error \d+\)|Os \{[^}]*message: "([^"]+)\"""")
"""The system's own words in what LanceDB says."""


class Missing(VectorsAway):
    """Something of a table is not there."""


@contextmanager
def told() -> Iterator[None]:
    """LanceDB has no errors of its own."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        whole = str(error).partition("\n")[0]
        first = whole[:300]
        kind = Missing if "not found" in first.lower() else VectorsAway
        system = SYSTEM.search(whole)  # what it says, without where in the files of this server
        words = (system[1] or system[2]) if system else first
        raise kind(f"The index of texts failed: {words}", f"The index of texts failed: {first}") from error
