"""Marks around text from others, which show the model that it is data and not instructions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def fence_of(texts: Sequence[str]) -> str:
    """The mark for these texts: made of their digest, so the author of a text could not have included it."""
    digest = hashlib.sha256("\0".join(texts).encode("utf-8", "replace")).hexdigest()
    return f"#{digest[:16]}"
