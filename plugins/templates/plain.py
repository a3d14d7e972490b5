"""What the fields of a template may contain: JSON values, and nothing else that YAML can express."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Final

LARGEST: Final = 2**63


def check_plain(given: object) -> None:
    """Raises ValueError.  The caller has limited the depth."""
    if isinstance(given, Mapping):
        for key, value in given.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {str(key)[:80]} is no text; put it in quotation marks")
            check_plain(value)
    elif isinstance(given, list | tuple):
        for one in given:
            check_plain(one)
    elif given is not None and not isinstance(given, str):
        check_number(given)


def check_number(given: object) -> None:
    if not isinstance(given, int | float):
        raise ValueError(f"JSON has no values of the kind '{type(given).__name__}'")
    if not isfinite(given) or abs(given) >= LARGEST:
        raise ValueError(f"{str(given)[:30]} is no number that is taken here")
