"""What is known about a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from proxy.types import Caller


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What an upstream reports about a model.

    digest: changes when the weights do; "" if unknown.
    capabilities: of completion, embedding, tools, vision, thinking, insert; None if unknown.
    context: tokens that it was trained for; None if unknown.
    created: Unix seconds.
    """

    name: str
    digest: str = ""
    capabilities: frozenset[str] | None = None
    context: int | None = None
    created: int = 0
    owner: str = "library"
    told: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The model's entry in the upstream's own list."""

    def can(self, capability: str) -> bool | None:
        return None if self.capabilities is None else capability in self.capabilities


@runtime_checkable
class Offers(Protocol):
    """A plugin that answers under additional model names."""

    async def offered(self, caller: Caller, listed: Sequence[ModelInfo]) -> Mapping[str, ModelInfo]:
        """The additional names to list, with the model behind each.  listed: the models that the caller may use."""
