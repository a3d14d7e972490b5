"""Turns LanceDB's errors into VectorsAway."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from proxy.stores.vectors import VectorsAway

SYSTEM: Final = re.compile(r"""([A-Z][\w' ]+) \(os error \d+\)|Os \{[^}]*message: "([^"]+)\"""")
"""Finds the operating system's message in an error of LanceDB."""


class Missing(VectorsAway):
    """A table, or a file of it, does not exist."""


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn errors into Missing or VectorsAway; LanceDB has no exception classes of its own."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        whole = str(error).partition("\n")[0]
        first = whole[:300]
        kind = Missing if "not found" in first.lower() else VectorsAway
        system = SYSTEM.search(whole)  # so that clients do not see paths of this server
        words = (system[1] or system[2]) if system else first
        raise kind(f"The index of texts failed: {words}", f"The index of texts failed: {first}") from error
