"""Which models a key opens, by patterns of their names, and what is told of one that is not there."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final, TypeAlias

from proxy.errors import NotFound
from proxy.wire.ollama_models import canonical
from proxy.wire.ollama_out import LISTED

Patterns: TypeAlias = tuple[str, ...] | None
"""As the shell has them, such as `gemma*`; None opens every model."""
SERVED: Final = {"template": "templates", "experiment": "experiments"}
"""How names begin that plugins put a model's in place of, and which plugin does."""


@lru_cache(4096)
def opens(patterns: tuple[str, ...], name: str) -> bool:
    """Whether a pattern fits a model's name, with its tag, or without it where that is `latest`."""
    whole = canonical(name)
    spelled = (whole, whole.removesuffix(":latest"))
    return any(fnmatchcase(one, pattern.lower()) for pattern in patterns for one in spelled)


def unknown(name: str, alias: str | None = None, near: str = "") -> NotFound:
    """alias: what the name stands for.  near: a name that was probably meant."""
    if alias:
        message = f"The model '{name[:200]}' is an alias of '{alias}', which no upstream has."
    else:
        message = f"The model '{name[:200]}' does not exist or you do not have access to it.  {hint(name, near)}"
    return NotFound(message, param="model", code="model_not_found")


def hint(name: str, near: str) -> str:
    begins, colon, _ = name.partition(":")
    if near:
        return f"Did you mean '{near}'?"
    if colon and begins in SERVED:
        return f"'{begins}:NAME' is served by the plugin `{SERVED[begins]}`, in the chains that contain it."
    return f"{LISTED} those that are available."
