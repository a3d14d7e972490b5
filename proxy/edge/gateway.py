"""The client's address and scheme as reported by a trusted gateway in front of the server."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

from aiohttp import web

from proxy.identity import FORWARDED_FOR

FORWARDED_PROTO: Final = "X-Forwarded-Proto"


class Gateways:
    """networks: addresses of the trusted gateways, in CIDR notation."""

    def __init__(self, networks: Iterable[str]) -> None:
        self.networks = [ipaddress.ip_network(one) for one in networks]

    def trusts(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = getattr(parsed, "ipv4_mapped", None)
        return any((mapped or parsed) in network for network in self.networks)

    def client(self, request: web.BaseRequest) -> str:
        """The client's address: going back through `X-Forwarded-For`, the first that is not a trusted gateway's."""
        address = request.remote or ""
        if not self.networks or not self.trusts(address):
            return address
        told = ",".join(request.headers.getall(FORWARDED_FOR, ()))
        for hop in reversed([without_port(one.strip()) for one in told.split(",") if one.strip()]):
            if not is_address(hop):
                break
            address = hop
            if not self.trusts(hop):
                break
        return address

    def scheme(self, request: web.BaseRequest) -> str:
        """`https` if a trusted gateway reports that its client used it, otherwise `http`."""
        if self.networks and self.trusts(request.remote or ""):
            told = request.headers.get(FORWARDED_PROTO, "").strip().lower()
            return told if told in ("http", "https") else "http"
        return "http"


def without_port(hop: str) -> str:
    """The address alone: some gateways append the client's port."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    address, colon, port = hop.partition(":")
    return address if colon and port.isdecimal() else hop  # an IPv6 address has more colons


def is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
