"""OpenAI's namespaces of tools: clients name a function by namespace and name, the model by both joined into one.

Source: OpenAI's API reference, "Responses", and its guide "Function calling".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from proxy.types import JSON

KIND: Final = "namespace"
BETWEEN: Final = "__"
"""Separates namespace and name.  All servers accept it in a function's name, while some refuse a dot."""


def joined(namespace: str | None, name: str) -> str:
    """The name of a function for the model."""
    return f"{namespace}{BETWEEN}{name}" if namespace else name


def parted(tools: Iterable[Mapping[str, JSON]]) -> dict[str, tuple[str, str]]:
    """Namespace and name of each function, by its name for the model.  tools: as a response repeats them."""
    spaces = [one for one in tools if one["type"] == KIND]
    return {
        joined(space["name"], one["name"]): (space["name"], one["name"]) for space in spaces for one in space["tools"]
    }
