"""API keys: how they are made, and what is kept of them."""

from __future__ import annotations

import hmac
import secrets
from typing import Final

BEGIN: Final = "sk-gemmapy-"
RECOGNISED: Final = len(BEGIN) + 6
"""Characters that are kept to recognise a key by; 220 random bits stay unknown."""
LONGEST: Final = 128
"""Characters of what could be a key."""


def new_key() -> str:
    """`sk-gemmapy-` and 32 random bytes in 43 letters, digits, `-` and `_`."""
    return BEGIN + secrets.token_urlsafe(32)


def prefix_of(key: str) -> str:
    return key[:RECOGNISED]


def hash_of(key: str, secret: bytes) -> str:
    """What is kept of a key: an HMAC-SHA256 of the whole of it, as 64 hexadecimal digits."""
    return hmac.digest(secret, key.encode(errors="surrogateescape"), "sha256").hex()


def mark_of(secret: bytes) -> str:
    """By which it is noticed that a secret is another one.

    Four hexadecimal digits of an HMAC: whoever has them cannot make sure of a secret that is guessed.
    """
    return hmac.digest(secret, b"gemmapy-proxy accounts.secret", "sha256")[:2].hex()


def could_be(token: str) -> bool:
    """Whether it is worth looking for in the database."""
    return token.startswith(BEGIN) and len(token) <= LONGEST
