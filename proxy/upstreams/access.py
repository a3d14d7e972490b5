"""Which models a key permits, by patterns of their names, and the error for an unknown model."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final, TypeAlias

from proxy.errors import NotFound
from proxy.wire.ollama_models import canonical
from proxy.wire.ollama_out import LISTED

Patterns: TypeAlias = tuple[str, ...] | None
"""Shell patterns such as `gemma*`; None permits every model."""
RESOLVED_BY_PLUGIN: Final = {"template": "templates", "experiment": "experiments"}
"""Prefixes of names that stand for no model until a plugin has resolved them, and that plugin."""


@lru_cache(4096)
def permits(patterns: tuple[str, ...], name: str) -> bool:
    """Whether a pattern matches a model's name, with its tag or, if that is `latest`, without it."""
    whole = canonical(name)
    spelled = (whole, whole.removesuffix(":latest"))
    return any(fnmatchcase(one, pattern.lower()) for pattern in patterns for one in spelled)


def unknown(name: str, alias: str | None = None, near: str = "") -> NotFound:
    """alias: the model that the name is an alias of.  near: a similar name to suggest."""
    if alias:
        message = f"The model '{name[:200]}' is an alias of '{alias}', which no upstream has."
    else:
        message = f"The model '{name[:200]}' does not exist or you do not have access to it.  {hint(name, near)}"
    return NotFound(message, param="model", code="model_not_found")


def hint(name: str, near: str) -> str:
    begins, colon, _ = name.partition(":")
    if near:
        return f"Did you mean '{near}'?"
    if colon and begins in RESOLVED_BY_PLUGIN:
        return f"'{begins}:NAME' is served by the plugin `{RESOLVED_BY_PLUGIN[begins]}`, in the chains that contain it."
    return f"{LISTED} those that are available."
