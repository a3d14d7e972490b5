"""What is known of a model."""

from __future__ import annotations

from dataclasses import dataclass


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

    def can(self, capability: str) -> bool | None:
        return None if self.capabilities is None else capability in self.capabilities
