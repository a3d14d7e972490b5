"""How a feature brings a new model to the hosts that have the one it was made of, without knowing any host."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

from msgspec import Struct

from proxy.asks import JSON
from proxy.errors import NotFound


class NewModel(Struct, frozen=True):
    """name: what it will be called.  base: the model, of whatever name or alias, whose upstream it goes to.

    path: a GGUF file.  adapter: whether that changes the base, which is needed with it then, or is a model by itself.
    """

    name: str
    base: str
    path: Path
    adapter: bool


Telling: TypeAlias = Callable[[str], Awaitable[None]]
"""Is told in words how far it is, a host's own ones among them."""


class Imports(Protocol):
    """Every method raises NotFound where no upstream has the base, BadCall where its upstream takes no models, and
    UpstreamError."""

    async def check(self, base: str, adapter: bool) -> None:
        """Whether a model of this kind could be brought there, which costs its hosts nothing.  Raises BadCall."""

    async def facts(self, base: str) -> Mapping[str, JSON]:
        """What its host tells of a model's weights, by the names of GGUF, such as `general.architecture`."""

    async def create(self, model: NewModel, told: Telling) -> Sequence[str]:
        """At every host that has the base, or at none where one refuses it; what there is to say of the other hosts.

        The UpstreamError of a refusal has the cause `server`.
        """

    async def remove(self, name: str, base: str) -> None:
        """From every host that has it."""


class NoImports:
    """Where there are no upstreams."""

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
