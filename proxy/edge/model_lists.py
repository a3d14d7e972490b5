"""The models that a caller may see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from proxy.host import Models
from proxy.models import ModelInfo, Offers
from proxy.types import Caller


@dataclass(frozen=True, slots=True)
class Shown:
    """The upstreams' models, and those that plugins offer under other names."""

    models: Models
    offering: Sequence[Offers] = ()

    async def to(self, caller: Caller) -> list[ModelInfo]:
        """All models that this caller may see.  Raises UpstreamError if no upstream answers."""
        listed = await self.models.all(caller.models)
        offered = [await one.offered(caller, listed) for one in self.offering]
        return listed + [replace(info, name=name) for names in offered for name, info in names.items()]

    async def behind(self, name: str, caller: Caller) -> ModelInfo | None:
        """The model that a plugin's name stands for; None for any other name."""
        if not self.offering:
            return None
        listed = await self.models.all(caller.models)
        for one in self.offering:
            if (info := (await one.offered(caller, listed)).get(name)) is not None:
                return info
        return None
