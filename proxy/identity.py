"""Who is calling, and what that opens.  Denies what no rule allows."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from pydantic import SecretStr

from proxy.config import Config, Key
from proxy.errors import ConfigError, Denied, Unauthenticated
from proxy.types import Caller, Who
from proxy.yamlfile import Source

NOBODY: Final = Caller("anonymous", "public")
HERE: Final = Caller("anonymous", "admin")
ELSEWHERE: Final = Caller("anonymous", "user")
FORWARDED_FOR: Final = "X-Forwarded-For"
FORWARDED: Final = (FORWARDED_FOR, "Forwarded", "X-Real-IP", "Via")
"""Headers of gateways; whoever comes through one is not known to sit at this machine."""
RANK: Mapping[Who, int] = {"public": 0, "user": 1, "admin": 2}


@lru_cache(4096)
def is_loopback(host: str) -> bool:
    """Whether a host name or address, perhaps in brackets, can only mean this machine."""
    host = host.strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@lru_cache(256)
def host_of(header: str) -> tuple[str, bool]:
    """The name in a Host header, and whether it is this machine's."""
    try:
        host = urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return header, False
    return host, is_loopback(host)


def check_exposure(config: Config, source: Source, insecure: bool) -> None:
    """Raises ConfigError if anybody on the network could use the server without a key."""
    host = config.listen.host
    if config.keys or insecure or is_loopback(host):
        return
    problem = (
        f"{host} is not a loopback address and no keys are configured, so that anybody who reaches this machine could "
        "use it.  Add `keys:`, listen on 127.0.0.1, or say --insecure."
    )
    listen = source.data.get("listen")
    of_the_file = isinstance(listen, dict) and listen.get("host") == host  # else it is the command line's
    raise ConfigError([source.problem(("listen", "host"), problem) if of_the_file else problem])


class Guard:
    """Knows the keys of one configuration."""

    def __init__(self, config: Config) -> None:
        # Looked up by a digest under a secret of this process, so that timing tells nothing of a key.
        self.secret = secrets.token_bytes(32)
        self.callers: dict[bytes, Caller] = {}
        for name, given in config.keys.items():
            key, role = (given.key, given.role) if isinstance(given, Key) else (given, "user")
            self.callers[self.digest(key)] = Caller(name, role)
        self.local = not config.keys and is_loopback(config.listen.host)
        self.origins = config.web.origins
        self.hosts = frozenset(host.lower() for host in config.web.hosts)

    def digest(self, key: SecretStr) -> bytes:
        return hmac.digest(self.secret, key.get_secret_value().encode(), "sha256")

    def admit(self, request: web.BaseRequest, who: Who, client: str) -> Caller:
        """client: the address that the request came from.  Raises Unauthenticated or Denied."""
        if who == "public":
            return NOBODY
        caller = self.identify(request) if self.callers else self.keyless(request, client)
        if RANK[caller.role] < RANK[who]:
            raise Denied(f"This needs a key with the role '{who}'.", code="insufficient_permissions")
        return caller

    def keyless(self, request: web.BaseRequest, client: str) -> Caller:
        """While there are no keys, whoever sits at this machine is its admin; what a gateway hands on is not."""
        forwarded = any(name in request.headers for name in FORWARDED)
        here = self.local and is_loopback(client) and not forwarded
        return HERE if here else ELSEWHERE

    def identify(self, request: web.BaseRequest) -> Caller:
        scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            message = "No API key was given: send it as 'Authorization: Bearer KEY'."
            raise Unauthenticated(message, code="invalid_api_key")
        digest = hmac.digest(self.secret, token.encode(errors="surrogateescape"), "sha256")
        if known := self.callers.get(digest):
            return known
        raise Unauthenticated("The API key is not one of this server's.", code="invalid_api_key")

    def check_site(self, request: web.BaseRequest) -> None:
        """Without keys, a page in a browser on this machine must not get in by a name that it made up.

        Raises Denied for a Host that is not this machine's, and for an Origin that is not allowed.
        """
        if not self.local:
            return
        host, here = host_of(request.headers.get(hdrs.HOST, ""))
        if not here and host not in self.hosts:
            raise Denied(f"The host '{host[:200]}' is not this server's; see `web.hosts`.", code="host_not_allowed")
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and not self.welcome(origin) and not host_of(origin.partition("//")[2])[1]:
            raise Denied(f"The origin '{origin[:200]}' is not allowed; see `web.origins`.", code="origin_not_allowed")

    def welcome(self, origin: str) -> bool:
        return origin in self.origins or "*" in self.origins

    def cors(self, request: web.BaseRequest) -> dict[str, str]:
        """The headers that let a page of an allowed origin read the answer."""
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None or not self.welcome(origin):
            return {}
        return {
            hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin,
            hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: "*",
            hdrs.VARY: hdrs.ORIGIN,
        }
