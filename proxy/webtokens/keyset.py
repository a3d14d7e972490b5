"""An identity provider's public keys: from a file or a URL, kept while it is away, asked again for a new one."""

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
"""Seconds after which the keys are asked for again, while the old ones still serve."""
SELDOM: Final = 30.0
"""Seconds between two questions at least, whatever keys tokens name."""
SOON: Final = 1.0
"""The same, while there are no keys at all."""
PATIENCE: Final = 5.0
"""Seconds that an answer may take."""
LARGEST: Final = 256 * 1024
"""Bytes of a set."""
MOST: Final = 100
"""Keys of a set."""
TRIED: Final = 8
"""Keys that are tried for a token that names none."""
SMALLEST: Final = 2048
"""Bits of an RSA key that is believed."""
CURVES: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}


@dataclass(frozen=True, slots=True)
class PublicKey:
    """algorithms: what it may have signed.  A key is bound to them, so that no token can choose another way."""

    id: str | None
    algorithms: frozenset[str]
    made: dict[str, PyJWK]
    """By algorithm."""


class KeysAway(Busy):
    """No keys were ever told."""

    def __init__(self, place: str, why: str) -> None:
        super().__init__(f"The keys of the identity provider are not known: {place}: {why}.", code="keys_unavailable")
        self.wait = 5.0


class KeySet:
    """place: a file or a URL.  allowed: algorithms that are believed."""

    def __init__(self, place: str, allowed: Sequence[str], services: Services) -> None:
        self.place = place
        self.allowed = frozenset(allowed)
        self.services = services
        self.keys: tuple[PublicKey, ...] = ()
        self.asked = float("-inf")
        """When they were asked for last, in monotonic seconds."""
        self.why = "not asked yet"
        self.asking: asyncio.Task[None] | None = None

    async def fitting(self, algorithm: str, id: str | None) -> Sequence[PublicKey]:
        """The keys that may have signed a token, by what its head says.  Raises KeysAway."""
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
        """Whether there are others by now, in a set that has not been asked for a moment ago."""
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
        """A file is read now, a URL is not waited for.  Raises ConfigError for a file that cannot be used."""
        if "://" in self.place:
            self.refresh()
            return
        await self.ask()
        if not self.keys:
            raise ConfigError([f"jwt.jwks: {self.place}: {self.why}"])

    def refresh(self) -> None:
        """Ask in the background; one question at a time."""
        if self.asking is None or self.asking.done():
            self.asked = self.services.clock.monotonic()
            self.asking = self.services.background.start(self.ask(), "asking for the identity provider's keys")

    async def ask(self) -> None:
        """The last good set stays where there is no better one."""
        try:
            async with asyncio.timeout(PATIENCE):
                keys = public_keys(await self.document(), self.allowed)
        except (OSError, TimeoutError, ValueError, aiohttp.ClientError) as error:
            why = str(error) or type(error).__name__
            if why != self.why:  # an outage is told once
                log.warning("the keys of the identity provider cannot be read: %s: %s", self.place, why)
            self.why = why
        else:
            self.keys, self.why = keys, ""

    async def document(self) -> bytes:
        """Raises OSError, ClientError, or ValueError for what cannot be a set."""
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
    """Those of a JWKS that can check signatures.  Raises ValueError where there are none."""
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
    """None for what cannot, or must not, check a signature here."""
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
    """What a key of its kind can sign; a secret one (`oct`) nothing, since whoever knows it could make tokens."""
    kind, curve = told.get("kty"), told.get("crv")
    if kind == "RSA":
        return frozenset(f"{family}{size}" for family in ("RS", "PS") for size in (256, 384, 512))
    if kind == "EC" and isinstance(curve, str) and curve in CURVES:
        return frozenset({CURVES[curve]})
    return frozenset({"EdDSA"}) if kind == "OKP" and curve in ("Ed25519", "Ed448") else frozenset()
