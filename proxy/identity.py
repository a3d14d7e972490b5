"""Who is calling, and what they may use.  Denies by default."""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final, Protocol
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from proxy.config import Config, Key
from proxy.errors import ConfigError, Denied, Unauthenticated
from proxy.settings import IdentityHeader
from proxy.settings.identity import SHORTEST
from proxy.types import Caller, Who
from proxy.yamlfile import Source

NOBODY: Final = Caller("anonymous", "public")
HERE: Final = Caller("anonymous", "admin")
ELSEWHERE: Final = Caller("anonymous", "user")
FORWARDED_FOR: Final = "X-Forwarded-For"
FORWARDED: Final = (FORWARDED_FOR, "Forwarded", "X-Real-IP", "Via")
"""Headers that gateways add; a request with one of them may come from another machine."""
ROOT_KEY: Final = "GEMMAPY_ADMIN_KEY"
"""The environment variable with an admin's key; only read if there are accounts."""
LONGEST_NAME: Final = 256
MISPLACED: Final = ("api-key", "x-api-key", "openai-api-key")
"""Headers in which other servers expect a key."""
IN_URLS: Final = frozenset({"key", "api_key", "api-key", "apikey", "token"})
"""Query parameters in which some clients send a key."""
RANK: Mapping[Who, int] = {"public": 0, "user": 1, "admin": 2}


@lru_cache(4096)
def is_loopback(host: str) -> bool:
    """Whether a host name or address (an IPv6 one possibly in brackets) can only mean this machine."""
    host = host.strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@lru_cache(256)
def host_of(header: str) -> tuple[str, bool]:
    """The host name in a Host header, and whether it is a loopback name."""
    try:
        host = urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return header, False
    return host, is_loopback(host)


class Verifier(Protocol):
    """Finds the callers of one kind of tokens that are not in the configuration: API keys in the database, or JWTs."""

    def owns(self, token: str) -> bool:
        """Whether a token looks like one of this kind."""

    def recall(self, digest: bytes) -> Caller | None:
        """The caller of a token that was verified recently.  digest: of the token, as `Guard.digest` makes it."""

    async def verify(self, token: str, digest: bytes) -> Caller:
        """The caller of a token.  Raises Unauthenticated, or Busy while this cannot be checked."""


def is_guarded(config: Config) -> bool:
    """Whether callers must authenticate."""
    ways = (config.accounts, config.jwt, config.identity_header)
    return bool(config.keys) or any(way is not None for way in ways)


def check_exposure(config: Config, source: Source, insecure: bool) -> None:
    """Raises ConfigError if anybody on the network could use the server without authentication."""
    host = config.listen.host
    if is_guarded(config) or insecure or is_loopback(host):
        return
    problem = (
        f"{host} is not a loopback address and no keys are configured, so that anybody who reaches this machine could "
        "use it.  Add `keys:`, `accounts:`, `jwt:` or `identity_header:`, listen on 127.0.0.1, or pass --insecure."
    )
    listen = source.data.get("listen")
    of_the_file = isinstance(listen, dict) and listen.get("host") == host  # else it is from the command line
    raise ConfigError([source.problem(("listen", "host"), problem) if of_the_file else problem])


def root_key(config: Config, env: Mapping[str, str] = os.environ) -> str | None:
    """The admin's key in the environment, if there are accounts.  Raises ConfigError if it is too short."""
    key = env.get(ROOT_KEY, "").strip() if config.accounts is not None else ""
    if key and len(key) < SHORTEST:
        raise ConfigError([f"{ROOT_KEY} has fewer than {SHORTEST} characters"])
    return key or None


def given_keys(config: Config) -> Iterator[tuple[str, Caller]]:
    """Every key of the file and of the environment, with its caller."""
    for name, given in config.keys.items():
        one = given if isinstance(given, Key) else Key(key=given)
        routes = None if one.routes is None else frozenset[str](one.routes)
        yield one.key.get_secret_value(), Caller(name, one.role, models=one.models, routes=routes)
    if (root := root_key(config)) is not None:
        yield root, Caller("admin", "admin")


def has_admin(config: Config) -> bool:
    """Whether an admin has a key that is not in the database."""
    return any(caller.is_admin for _, caller in given_keys(config))


def way_in(request: web.BaseRequest) -> str:
    """For an error message: how to send a key, and where this request has wrongly put one."""
    if request.headers.get(hdrs.AUTHORIZATION, "").strip():
        return "'Authorization' must be 'Bearer KEY'."
    astray = [f"the header '{name}'" for name in MISPLACED if name in request.headers]
    astray += ["the URL"] if IN_URLS & request.query.keys() else []
    return "send it as 'Authorization: Bearer KEY'" + (f", not in {astray[0]}." if astray else ".")


def nobody_trusted(address: str) -> bool:
    return False


def subdomains(origins: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern for the origins with `*.`, which stands for one or more subdomains; None if there are none."""
    found = [one.partition("*.") for one in origins if "*." in one]
    every = "|".join(f"{re.escape(scheme)}([a-z0-9_-]+\\.)+{re.escape(rest)}" for scheme, _, rest in found)
    return re.compile(every) if every else None


class Guard:
    """Authenticates requests according to one configuration."""

    def __init__(
        self,
        config: Config,
        verifiers: Sequence[Verifier] = (),
        trusts: Callable[[str], bool] = nobody_trusted,
        secret: bytes | None = None,
    ) -> None:
        """trusts: whether an address is that of a trusted gateway.  secret: the HMAC key of digests."""
        # Keys are looked up by a digest keyed with a secret of this process, so that timing reveals nothing about them.
        self.secret = secret or secrets.token_bytes(32)
        self.callers = {self.digest(key): caller for key, caller in given_keys(config)}
        self.verifiers = verifiers
        self.trusts = trusts
        self.header = config.identity_header
        self.guarded = is_guarded(config)
        self.local = not self.guarded and is_loopback(config.listen.host)
        self.origins = frozenset(one for one in config.web.origins if "*." not in one)
        self.subdomains = subdomains(config.web.origins)
        self.hosts = frozenset(host.lower() for host in config.web.hosts)

    def digest(self, token: str) -> bytes:
        return hmac.digest(self.secret, token.encode(errors="surrogateescape"), "sha256")

    def admit(self, request: web.BaseRequest, who: Who, client: str) -> Caller | Awaitable[Caller]:
        """The caller, or an awaitable of it if the database or a token must be checked first.

        who: the role that is needed.  client: the address that the request came from.
        Raises Unauthenticated, Denied, or Busy.
        """
        if who == "public":
            return NOBODY
        caller = self.identify(request) if self.guarded else self.keyless(request, client)
        if isinstance(caller, Caller):
            return entitled(caller, who)
        return self.later(caller, who)

    async def later(self, identified: Awaitable[Caller], who: Who) -> Caller:
        return entitled(await identified, who)

    def keyless(self, request: web.BaseRequest, client: str) -> Caller:
        """The caller if no authentication is configured: an admin if the server listens only on this machine and the
        request does not come through a gateway, else a user."""
        forwarded = any(name in request.headers for name in FORWARDED)
        here = self.local and is_loopback(client) and not forwarded
        return HERE if here else ELSEWHERE

    def identify(self, request: web.BaseRequest) -> Caller | Awaitable[Caller]:
        """The caller by the identity header, else by the bearer token.  Raises Unauthenticated."""
        if self.header is not None and (told := self.named_by_gateway(request, self.header)) is not None:
            return told
        scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated(f"No API key was given: {way_in(request)}", code="invalid_api_key")
        digest = hmac.digest(self.secret, token.encode(errors="surrogateescape"), "sha256")
        if known := self.callers.get(digest):
            return known
        for verifier in self.verifiers:
            if known := verifier.recall(digest):
                return known
        for verifier in self.verifiers:
            if verifier.owns(token):
                return verifier.verify(token, digest)
        raise Unauthenticated("The API key is not valid on this server.", code="invalid_api_key")

    def named_by_gateway(self, request: web.BaseRequest, header: IdentityHeader) -> Caller | None:
        """The caller that a trusted gateway names in the identity header, or None.  Raises Unauthenticated."""
        names = request.headers.getall(header.user, ())
        name = "".join(names).strip()
        if not name or not self.trusts(request.remote or ""):
            return None
        roles = request.headers.getall(header.role, ()) if header.role else ()
        # A gateway may have added its header to one that the client sent, and they cannot be told apart.
        if len(names) > 1 or len(roles) > 1 or len(name) > LONGEST_NAME or not name.isprintable():
            raise Unauthenticated(f"The header {header.user} names no caller.", code="invalid_identity")
        is_admin = name in header.admins or "admin" in roles
        return Caller(name, "admin" if is_admin else "user")

    def check_site(self, request: web.BaseRequest) -> None:
        """Without keys, protect against web pages in a browser on this machine, also by DNS rebinding.

        Raises Denied for a Host that is neither a loopback name nor allowed, and for an Origin that is not allowed.
        """
        if not self.local:
            return
        host, here = host_of(request.headers.get(hdrs.HOST, ""))
        if not here and host not in self.hosts:
            raise Denied(f"The host '{host[:200]}' is not allowed; see `web.hosts`.", code="host_not_allowed")
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and not self.welcome(origin) and not host_of(origin.partition("//")[2])[1]:
            raise Denied(f"The origin '{origin[:200]}' is not allowed; see `web.origins`.", code="origin_not_allowed")

    def welcome(self, origin: str) -> bool:
        if origin in self.origins or ("*" in self.origins and origin.isascii()):  # ASCII, as a header repeats it
            return True
        return self.subdomains is not None and self.subdomains.fullmatch(origin) is not None

    def cors(self, request: web.BaseRequest) -> dict[str, str]:
        """The CORS headers that let a page of an allowed origin read the answer; `Vary` keeps caches from giving an
        answer for one origin to another."""
        if not self.origins and self.subdomains is None:
            return {}
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None or not self.welcome(origin):
            return {hdrs.VARY: hdrs.ORIGIN}
        return {
            hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin,
            hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: "*",
            hdrs.VARY: hdrs.ORIGIN,
        }


def entitled(caller: Caller, who: Who) -> Caller:
    """The caller.  Raises Denied if its role is below the one that is needed."""
    if RANK[caller.role] < RANK[who]:
        raise Denied(f"This needs a key with the role '{who}'.", code="insufficient_permissions")
    return caller


def check_route(caller: Caller, route: str) -> None:
    """Raises Denied if the caller's key may not use this chain.  route: its name."""
    if caller.routes is not None and route not in caller.routes:
        raise Denied(f"This API key does not allow the route '{route}'.", code="route_not_allowed")
