"""What stands around text that nobody here has said: data, and no instructions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def fence_of(texts: Sequence[str]) -> str:
    """Made from what it encloses, so that whoever wrote that cannot have known it."""
    digest = hashlib.sha256("\0".join(texts).encode("utf-8", "replace")).hexdigest()
    return f"#{digest[:16]}"
