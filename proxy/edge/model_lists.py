"""The models that a caller is told of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from proxy.host import Models
from proxy.models import ModelInfo, Offers
from proxy.types import Caller


@dataclass(frozen=True, slots=True)
class Shown:
    """The upstreams' models, and what plugins offer under names of their own."""

    models: Models
    offering: Sequence[Offers] = ()

    async def to(self, caller: Caller) -> list[ModelInfo]:
        """Raises UpstreamError if no upstream answers."""
        listed = await self.models.all(caller.models)
        offered = [await one.offered(caller, listed) for one in self.offering]
        return listed + [replace(info, name=name) for names in offered for name, info in names.items()]

    async def behind(self, name: str, caller: Caller) -> ModelInfo | None:
        """The model behind a name that a plugin offers; None for any other."""
        if not self.offering:
            return None
        listed = await self.models.all(caller.models)
        for one in self.offering:
            if (info := (await one.offered(caller, listed)).get(name)) is not None:
                return info
        return None
