"""Verifies JSON Web Tokens and finds their callers."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Final

import jwt
from jwt.exceptions import (
    ExpiredSignatureError,
    ImmatureSignatureError,
    InvalidAudienceError,
    InvalidIssuerError,
    MissingRequiredClaimError,
    PyJWTError,
)

from proxy.errors import Unauthenticated
from proxy.host import Services
from proxy.settings import Jwt as Settings
from proxy.types import JSON, Caller
from proxy.webtokens.keyset import KeySet, PublicKey

SHAPE: Final = re.compile(r"eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
LONGEST: Final = 16_384
"""Maximum characters of a token."""
MOST: Final = 10_000
"""Maximum number of cached tokens."""
LONGEST_NAME: Final = 256
NEEDED: Final = ["exp", "iss", "aud"]
SAID: Final[Mapping[type[Exception], str]] = {
    ExpiredSignatureError: "has expired",
    ImmatureSignatureError: "is not valid yet",
    InvalidIssuerError: "is another issuer's",
    InvalidAudienceError: "is meant for another audience",
}


class Tokens(AbstractAsyncContextManager["Tokens"]):
    """The Verifier for tokens of one identity provider."""

    def __init__(self, settings: Settings, services: Services) -> None:
        self.settings = settings
        self.clock = services.clock
        place = f"jwt keys {settings.jwks} {sorted(settings.algorithms)}"
        self.keys = services.process_state(place, lambda: KeySet(settings.jwks, settings.algorithms, services))
        self.known: OrderedDict[bytes, tuple[float, Caller]] = OrderedDict()
        """Verified callers by their token's digest, with the monotonic seconds until when they are cached."""
        self.admins = frozenset(settings.admin)

    async def __aenter__(self) -> Tokens:
        """Raises ConfigError if the keys are in a file that cannot be used."""
        await self.keys.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def owns(self, token: str) -> bool:
        return len(token) <= LONGEST and SHAPE.fullmatch(token) is not None

    def recall(self, digest: bytes) -> Caller | None:
        until, caller = self.known.get(digest, (0.0, None))
        return caller if caller is not None and until > self.clock.monotonic() else None

    async def verify(self, token: str, digest: bytes) -> Caller:
        """The caller of a token.  Raises Unauthenticated, or KeysAway."""
        algorithm, id = head_of(token)
        if algorithm not in self.settings.algorithms:
            raise refused("is signed with an algorithm that is not accepted")
        keys = await self.keys.fitting(algorithm, id)
        claims = self.claims(token, algorithm, keys)
        if claims is None and keys and await self.keys.renewed():  # a new key may have the same id, or none
            claims = self.claims(token, algorithm, await self.keys.fitting(algorithm, id))
        if claims is None:
            raise refused("is signed with an unknown key")
        caller = self.caller(claims)
        self.keep(digest, caller, int(claims["exp"]))
        return caller

    def claims(self, token: str, algorithm: str, keys: Sequence[PublicKey]) -> dict[str, JSON] | None:
        """The verified claims of a token; None if none of these keys has signed it.  Raises Unauthenticated."""
        for key in keys:
            try:
                return self.checked(token, algorithm, key)
            except jwt.InvalidSignatureError:
                continue
            except MissingRequiredClaimError as error:
                raise refused(f"has no claim '{error.claim}'") from None
            except (PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
                raise refused(SAID.get(type(error), "cannot be read")) from None
        return None

    def checked(self, token: str, algorithm: str, key: PublicKey) -> dict[str, JSON]:
        # `sub` is not checked here, because another claim may name the caller; `caller` checks that one.
        return jwt.decode(
            token,
            key.made[algorithm],
            algorithms=[algorithm],
            issuer=self.settings.issuer,
            audience=list(self.settings.audience),
            leeway=self.settings.leeway,
            options={"require": NEEDED, "verify_sub": False, "verify_jti": False},
        )

    def caller(self, claims: Mapping[str, JSON]) -> Caller:
        name = claim(claims, self.settings.user)
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            raise refused(f"has no caller's name in the claim '{self.settings.user}'")
        roles = words_of(claim(claims, self.settings.role)) if self.settings.role else frozenset()
        return Caller(name, "admin" if roles & self.admins else "user")

    def keep(self, digest: bytes, caller: Caller, expires: int) -> None:
        """Cache a verified token.  expires: seconds since 1970; an int, because it may be too large for a float."""
        now = self.clock.time()
        left = self.settings.cache if expires > now + self.settings.cache else expires - now
        if left > 0:
            self.known[digest] = (self.clock.monotonic() + left, caller)
            self.known.move_to_end(digest)
            if len(self.known) > MOST:
                self.known.popitem(last=False)


def head_of(token: str) -> tuple[str, str | None]:
    """The algorithm and key id in a token's header, which is not verified yet.  Raises Unauthenticated."""
    try:
        head = jwt.get_unverified_header(token)
    except (PyJWTError, ValueError, RecursionError):
        raise refused("cannot be read") from None
    if "crit" in head:
        raise refused("requires an extension that is not supported")
    algorithm, id = head.get("alg"), head.get("kid")
    return str(algorithm), id if isinstance(id, str) else None


def claim(claims: Mapping[str, JSON], path: str) -> JSON:
    """The claim at a path with dots; a claim whose own name contains dots, such as a URL, comes first."""
    if path in claims:
        return claims[path]
    found: JSON = claims
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def words_of(roles: JSON) -> frozenset[str]:
    """The roles in a claim: a list, or a text with one or several separated by spaces, such as `scope`."""
    if isinstance(roles, str):
        return frozenset({roles, *roles.split()})
    return frozenset(one for one in roles if isinstance(one, str)) if isinstance(roles, list) else frozenset()


def refused(why: str) -> Unauthenticated:
    return Unauthenticated(f"The token {why}.", code="invalid_api_key")
