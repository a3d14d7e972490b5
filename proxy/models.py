"""What is known of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from proxy.types import Caller


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


@runtime_checkable
class Offers(Protocol):
    """Answers under names of its own, beside those of the upstreams' models."""

    async def offered(self, caller: Caller, listed: Sequence[ModelInfo]) -> Mapping[str, ModelInfo]:
        """By names that stand in lists of models, the model behind each.  listed: those that the caller may ask."""
