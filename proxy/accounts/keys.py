"""API keys: how they are made, and what the database stores of them."""

from __future__ import annotations

import hmac
import secrets
from typing import Final

BEGIN: Final = "sk-gemmapy-"
RECOGNISED: Final = len(BEGIN) + 6
"""Characters that are stored so that people can recognise a key; 220 of its random bits stay unknown."""
LONGEST: Final = 128
"""Maximum characters of a token that may be a key."""


def new_key() -> str:
    """A new key: `sk-gemmapy-` and 32 random bytes as 43 letters, digits, `-` and `_`."""
    return BEGIN + secrets.token_urlsafe(32)


def prefix_of(key: str) -> str:
    return key[:RECOGNISED]


def hash_of(key: str, secret: bytes) -> str:
    """The stored form of a key: an HMAC-SHA256 of all of it, as 64 hexadecimal digits."""
    return hmac.digest(secret, key.encode(errors="surrogateescape"), "sha256").hex()


def mark_of(secret: bytes) -> str:
    """A mark of the secret, by which a changed secret is noticed.

    It is only four hexadecimal digits of an HMAC, too few to verify a guessed secret with.
    """
    return hmac.digest(secret, b"gemmapy-proxy accounts.secret", "sha256")[:2].hex()


def could_be(token: str) -> bool:
    """Whether a token looks like a key, so that it is worth a query to the database."""
    return token.startswith(BEGIN) and len(token) <= LONGEST
