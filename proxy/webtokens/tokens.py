"""A JSON web token -> the caller that it vouches for."""

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
"""Characters of a token."""
MOST: Final = 10_000
"""Tokens that are remembered."""
LONGEST_NAME: Final = 256
NEEDED: Final = ["exp", "iss", "aud"]
SAID: Final[Mapping[type[Exception], str]] = {
    ExpiredSignatureError: "has expired",
    ImmatureSignatureError: "is not valid yet",
    InvalidIssuerError: "is another issuer's",
    InvalidAudienceError: "is meant for another audience",
}


class Tokens(AbstractAsyncContextManager["Tokens"]):
    """Believes what one identity provider has signed."""

    def __init__(self, settings: Settings, services: Services) -> None:
        self.settings = settings
        self.clock = services.clock
        place = f"jwt keys {settings.jwks} {sorted(settings.algorithms)}"
        self.keys = services.kept(place, lambda: KeySet(settings.jwks, settings.algorithms, services))
        self.known: OrderedDict[bytes, tuple[float, Caller]] = OrderedDict()
        """Monotonic seconds until when a caller is believed, by its token's digest."""
        self.admins = frozenset(settings.admin)

    async def __aenter__(self) -> Tokens:
        """Raises ConfigError for a file of keys that cannot be used."""
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
        """Raises Unauthenticated, or KeysAway."""
        algorithm, id = head_of(token)
        if algorithm not in self.settings.algorithms:
            raise refused("is signed with an algorithm that is not accepted")
        keys = await self.keys.fitting(algorithm, id)
        claims = self.claims(token, algorithm, keys)
        if claims is None and keys and await self.keys.renewed():  # perhaps under the same id, or under none
            claims = self.claims(token, algorithm, await self.keys.fitting(algorithm, id))
        if claims is None:
            raise refused("is signed with an unknown key")
        caller = self.caller(claims)
        self.keep(digest, caller, int(claims["exp"]))
        return caller

    def claims(self, token: str, algorithm: str, keys: Sequence[PublicKey]) -> dict[str, JSON] | None:
        """What it says, checked with whichever of these keys fits; None where none has signed it.  Raises
        Unauthenticated."""
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
        # Whether a name is one is checked of the claim that names the caller, which need not be `sub`.
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
        """expires: seconds since 1970, which may be more than any float."""
        now = self.clock.time()
        left = self.settings.cache if expires > now + self.settings.cache else expires - now
        if left > 0:
            self.known[digest] = (self.clock.monotonic() + left, caller)
            self.known.move_to_end(digest)
            if len(self.known) > MOST:
                self.known.popitem(last=False)


def head_of(token: str) -> tuple[str, str | None]:
    """The algorithm and the key's id that a token names; neither is believed.  Raises Unauthenticated."""
    try:
        head = jwt.get_unverified_header(token)
    except (PyJWTError, ValueError, RecursionError):
        raise refused("cannot be read") from None
    if "crit" in head:
        raise refused("requires an extension that is not supported")
    algorithm, id = head.get("alg"), head.get("kid")
    return str(algorithm), id if isinstance(id, str) else None


def claim(claims: Mapping[str, JSON], path: str) -> JSON:
    """What a path leads to; a claim's own name may hold dots, as those do that are URLs."""
    if path in claims:
        return claims[path]
    found: JSON = claims
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def words_of(roles: JSON) -> frozenset[str]:
    """A list of roles, or a text with one or several, as `scope` is."""
    if isinstance(roles, str):
        return frozenset({roles, *roles.split()})
    return frozenset(one for one in roles if isinstance(one, str)) if isinstance(roles, list) else frozenset()


def refused(why: str) -> Unauthenticated:
    return Unauthenticated(f"The token {why}.", code="invalid_api_key")
