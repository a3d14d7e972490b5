"""What is known of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What an upstream knows of a model.

    digest: changes when the weights do; "" where unknown.
    capabilities: of completion, embedding, tools, vision, thinking, insert; None where unknown.
    context: tokens that it was trained for; None where unknown.
    created: Unix seconds.
    """

    name: str
    digest: str = ""
    capabilities: frozenset[str] | None = None
    context: int | None = None
    created: int = 0
    owner: str = "library"
    told: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The upstream's own entry in its list."""

    def can(self, capability: str) -> bool | None:
        return None if self.capabilities is None else capability in self.capabilities
