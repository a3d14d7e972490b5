"""An identity provider's public keys, from a file or a URL; cached, and fetched again for an unknown key."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import orjson
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from proxy.errors import Busy, ConfigError
from proxy.host import Services
from proxy.types import JSON

log = logging.getLogger(__name__)
REFRESH: Final = 300.0
"""Seconds after which the keys are fetched again in the background, while the old ones are still used."""
SELDOM: Final = 30.0
"""Minimum seconds between two requests, however many unknown keys tokens name."""
SOON: Final = 1.0
"""The same while there are no keys at all."""
PATIENCE: Final = 5.0
"""Seconds that a request may take."""
LARGEST: Final = 256 * 1024
"""Maximum bytes of a key set."""
MOST: Final = 100
"""Maximum keys of a set; further ones are ignored."""
TRIED: Final = 8
"""Maximum keys that are tried for a token that names none."""
SMALLEST: Final = 2048
"""Minimum bits of an RSA key; smaller ones are ignored."""
CURVES: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key for verifying signatures.  algorithms: the only ones it may be used with, whatever a token says."""

    id: str | None
    algorithms: frozenset[str]
    made: dict[str, PyJWK]
    """The key for PyJWT, by algorithm."""


class KeysAway(Busy):
    """No keys could be fetched so far."""

    def __init__(self, place: str, why: str) -> None:
        super().__init__(f"The keys of the identity provider are not known: {place}: {why}.", code="keys_unavailable")
        self.wait = 5.0


class KeySet:
    """The cached keys of one identity provider.  place: a file or a URL.  allowed: the accepted algorithms."""

    def __init__(self, place: str, allowed: Sequence[str], services: Services) -> None:
        self.place = place
        self.allowed = frozenset(allowed)
        self.services = services
        self.keys: tuple[PublicKey, ...] = ()
        self.asked = float("-inf")
        """When the keys were last requested, in monotonic seconds."""
        self.why = "not asked yet"
        self.asking: asyncio.Task[None] | None = None

    async def fitting(self, algorithm: str, id: str | None) -> Sequence[PublicKey]:
        """The keys that may have signed a token, according to its header.  Raises KeysAway."""
        found = self.found(algorithm, id)
        now = self.services.clock.monotonic()
        if now - self.asked >= (REFRESH if found else SELDOM if self.keys else SOON):
            self.refresh()
        if not found and self.asking is not None:
            await asyncio.wait([self.asking], timeout=PATIENCE)
            found = self.found(algorithm, id)
        if not self.keys:
            raise KeysAway(self.place, self.why)
        return found

    async def renewed(self) -> bool:
        """Fetch the keys again, unless that was done recently; gives whether a new set has arrived."""
        before = self.keys
        if self.services.clock.monotonic() - self.asked >= SELDOM:
            self.refresh()
        if self.asking is not None:
            await asyncio.wait([self.asking], timeout=PATIENCE)
        return self.keys is not before

    def found(self, algorithm: str, id: str | None) -> Sequence[PublicKey]:
        fit = [one for one in self.keys if algorithm in one.algorithms and (id is None or one.id == id)]
        return fit[:TRIED]

    async def open(self) -> None:
        """Read a file now, or begin to fetch a URL in the background.  Raises ConfigError if a file cannot be used."""
        if "://" in self.place:
            self.refresh()
            return
        await self.ask()
        if not self.keys:
            raise ConfigError([f"jwt.jwks: {self.place}: {self.why}"])

    def refresh(self) -> None:
        """Fetch the keys in the background; one request at a time."""
        if self.asking is None or self.asking.done():
            self.asked = self.services.clock.monotonic()
            self.asking = self.services.background.start(self.ask(), "asking for the identity provider's keys")

    async def ask(self) -> None:
        """Fetch the keys; if that fails, keep the last good ones."""
        try:
            async with asyncio.timeout(PATIENCE):
                keys = public_keys(await self.document(), self.allowed)
        except (OSError, TimeoutError, ValueError, aiohttp.ClientError) as error:
            why = str(error) or type(error).__name__
            if why != self.why:  # an outage is logged once
                log.warning("the keys of the identity provider cannot be read: %s: %s", self.place, why)
            self.why = why
        else:
            self.keys, self.why = keys, ""

    async def document(self) -> bytes:
        """The bytes of the key set.  Raises OSError, ClientError, or ValueError for a wrong status or size."""
        if "://" not in self.place:
            return await asyncio.to_thread(read_file, Path(self.place))
        async with self.services.http.get(self.place, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            document = b""
            async for part in response.content.iter_any():
                document += part
                if len(document) > LARGEST:
                    raise ValueError(f"more than {LARGEST} bytes")
            return document


def read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        document = file.read(LARGEST + 1)
    if len(document) > LARGEST:
        raise ValueError(f"more than {LARGEST} bytes")
    return document


def public_keys(document: bytes, allowed: frozenset[str]) -> tuple[PublicKey, ...]:
    """The keys of a JWKS that can verify signatures.  Raises ValueError if there are none."""
    try:
        listed = orjson.loads(document)["keys"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise ValueError("this is not a JSON Web Key Set") from None
    if not isinstance(listed, list):
        raise ValueError("this is not a JSON Web Key Set")
    keys = [key for one in listed[:MOST] if isinstance(one, dict) and (key := public_key(one, allowed)) is not None]
    if not keys:
        raise ValueError(f"it contains no public key for {', '.join(sorted(allowed))}")
    return tuple(keys)


def public_key(told: dict[str, JSON], allowed: frozenset[str]) -> PublicKey | None:
    """A key of a JWKS; None if it cannot, or must not, be used to verify signatures."""
    algorithms = algorithms_of(told) & allowed
    if told.get("use", "sig") != "sig" or told.get("alg") not in (None, *algorithms):
        return None
    if isinstance(named := told.get("alg"), str):
        algorithms = frozenset({named})
    public = {name: value for name, value in told.items() if name not in ("d", "p", "q", "dp", "dq", "qi", "oth", "k")}
    try:
        made = {algorithm: PyJWK(public, algorithm) for algorithm in algorithms}
    except (PyJWTError, ValueError, TypeError, KeyError):
        return None
    if any(getattr(one.key, "key_size", SMALLEST) < SMALLEST for one in made.values()) and told["kty"] == "RSA":
        return None
    id = told.get("kid")
    return PublicKey(id if isinstance(id, str) else None, algorithms, made) if made else None


def algorithms_of(told: dict[str, JSON]) -> frozenset[str]:
    """The algorithms of this type of key; none for a symmetric one (`oct`), which must not be in a public set."""
    kind, curve = told.get("kty"), told.get("crv")
    if kind == "RSA":
        return frozenset(f"{family}{size}" for family in ("RS", "PS") for size in (256, 384, 512))
    if kind == "EC" and isinstance(curve, str) and curve in CURVES:
        return frozenset({CURVES[curve]})
    return frozenset({"EdDSA"}) if kind == "OKP" and curve in ("Ed25519", "Ed448") else frozenset()
