"""Authorisation by chain and model, checked before any plugin could answer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from proxy.errors import Denied
from proxy.host import Host
from proxy.identity import check_route
from proxy.meter import refused
from proxy.types import Call, Caller, Plugin
from proxy.upstreams.catalogue import Catalogue


@dataclass(frozen=True, slots=True)
class Admission:
    """Checks callers' permissions, for every chain."""

    catalogue: Catalogue
    host: Host
    prefixes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By chain, the prefixes of names that a plugin resolves to a model later; they are not checked here."""
    measured: set[str] = field(default_factory=set)
    """Chains with a plugin that measures calls; refused calls are also reported to it."""

    def note(self, route: str, plugins: Collection[Plugin]) -> None:
        """Record what the plugins of a chain need."""
        self.prefixes[route] = tuple(one for plugin in plugins for one in getattr(plugin, "prefixes", ()))
        if any(getattr(plugin, "measures", False) for plugin in plugins):
            self.measured.add(route)

    def caller(self, call: Call, caller: Caller) -> None:
        """Raises Denied if the caller's key does not permit the call's chain or model."""
        try:
            check_route(caller, call.route)
        except Denied as error:
            self.tell(call, error)
            raise
        self.model(call)

    def model(self, call: Call) -> None:
        """Raises Denied if the caller's key does not permit the call's model."""
        if call.models is None or call.model.startswith(self.prefixes.get(call.route, ())):
            return
        try:
            self.catalogue.check(call)
        except Denied as error:
            self.tell(call, error)
            raise

    def tell(self, call: Call, error: Denied) -> None:
        if call.route in self.measured:
            refused(call, error, self.host)
