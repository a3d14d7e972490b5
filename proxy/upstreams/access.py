"""Which models a key opens, by patterns of their names."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TypeAlias

from proxy.wire.ollama_models import canonical

Patterns: TypeAlias = tuple[str, ...] | None
"""As the shell has them, such as `gemma*`; None opens every model."""


@lru_cache(4096)
def opens(patterns: Patterns, name: str) -> bool:
    """Whether a pattern fits a model's name, with its tag, or without it where that is `latest`."""
    if patterns is None:
        return True
    whole = canonical(name)
    spelled = (whole, whole.removesuffix(":latest"))
    return any(fnmatchcase(one, pattern.lower()) for pattern in patterns for one in spelled)
