"""How a feature brings a new model to the hosts that have its base model, without knowing the hosts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

from msgspec import Struct

from proxy.asks import JSON
from proxy.errors import NotFound


class NewModel(Struct, frozen=True):
    """name: of the new model.  base: name or alias of the model that it was made of, and to whose hosts it goes.

    path: a GGUF file.  adapter: whether the file is an adapter for the base, and not a complete model.
    """

    name: str
    base: str
    path: Path
    adapter: bool


Telling: TypeAlias = Callable[[str], Awaitable[None]]
"""Is called with progress messages, also those of the hosts themselves."""


class Imports(Protocol):
    """Every method raises NotFound if no upstream has the base, BadCall if its upstream does not accept new models, and
    UpstreamError."""

    async def check(self, base: str, adapter: bool) -> None:
        """Raises BadCall if the base's hosts do not accept a model of this kind.  The check costs them nothing."""

    async def facts(self, base: str) -> Mapping[str, JSON]:
        """What a host reports about a model's weights, by their GGUF names, such as `general.architecture`."""

    async def create(self, model: NewModel, told: Telling) -> Sequence[str]:
        """Create the model at every host that has the base, or at none if one refuses it.

        Gives messages about the hosts that do not have the base or cannot be reached.
        The UpstreamError of a refusal has the cause `server`.
        """

    async def remove(self, name: str, base: str) -> None:
        """Delete the model from every host that has it."""


class NoImports:
    """Used if there are no upstreams."""

    async def check(self, base: str, adapter: bool) -> None:
        raise unknown(base)

    async def facts(self, base: str) -> Mapping[str, JSON]:
        raise unknown(base)

    async def create(self, model: NewModel, told: Telling) -> Sequence[str]:
        raise unknown(model.base)

    async def remove(self, name: str, base: str) -> None:
        raise unknown(base)


def unknown(model: str) -> NotFound:
    return NotFound(f"There is no upstream that has the model '{model[:200]}'.", param="model", code="model_not_found")
