"""OpenAI's namespaces of tools: a model knows their functions under one name, and its client under two.

Source: OpenAI's API reference, "Responses", and its guide "Function calling".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from proxy.types import JSON

KIND: Final = "namespace"
BETWEEN: Final = "__"
"""Between the two names in the one: no server refuses it in a function's name, as some do a dot."""


def joined(namespace: str | None, name: str) -> str:
    """A function's name as the model knows it."""
    return f"{namespace}{BETWEEN}{name}" if namespace else name


def parted(tools: Iterable[Mapping[str, JSON]]) -> dict[str, tuple[str, str]]:
    """By the name that the model knows, the namespace and the name.  tools: as a response repeats them."""
    spaces = [one for one in tools if one["type"] == KIND]
    return {
        joined(space["name"], one["name"]): (space["name"], one["name"]) for space in spaces for one in space["tools"]
    }
