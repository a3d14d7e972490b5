"""Who may call, beyond the keys of the file: accounts in the database, web tokens, and a gateway's word."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeFloat, PositiveFloat, SecretStr, WithJsonSchema

from proxy.settings.base import Strict, check_port

HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
SHORTEST = 16
"""Characters of a secret that guards something, at least."""

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Those with a public key; with any other, whoever reads the key could make tokens."""


def _secret(given: SecretStr) -> SecretStr:
    if len(given.get_secret_value()) < SHORTEST:
        raise ValueError(f"a secret has at least {SHORTEST} characters; is its environment variable set?")
    return given


def _place(text: str) -> str:
    if "://" in text:
        parts = urlsplit(text)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ValueError(f"{text!r} is neither a file nor an http:// or https:// URL without a user")
        check_port(parts)
    return text


def _header_name(text: str) -> str:
    if not HEADER_NAME.fullmatch(text) or text.lower() in ("authorization", "cookie", "host"):
        raise ValueError(f"{text!r} is not the name of a header that a gateway could set")
    return text


Secret = Annotated[SecretStr, AfterValidator(_secret)]
HeaderName = Annotated[str, AfterValidator(_header_name)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[
    tuple[Text, ...],
    BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
"""One, or a list of them."""


class Accounts(Strict):
    """Users and API keys in the database, made with `gemmapy-proxy keys` or under `/api/admin/keys`."""

    secret: Secret | None = None
    """Secret for hashing the stored keys, preferably from the environment.  A different secret is refused until all
    keys have been revoked or have expired.  If unset, one is generated and kept in the database."""
    bootstrap: bool = True
    """Whether an admin key is created at start, and printed once to standard error, if no admin has a key here, under
    `keys:` or in the environment as `GEMMAPY_ADMIN_KEY`."""


class Jwt(Strict):
    """Callers authenticated by an identity provider with a JSON web token, sent in place of a key."""

    jwks: Annotated[Text, AfterValidator(_place)]
    """The provider's public keys: a file, or the URL of its JWKS."""
    issuer: Text
    """Required value of the claim `iss`."""
    audience: Annotated[Texts, Field(min_length=1)]
    """Accepted values of the claim `aud`: it must contain one of these."""
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ("RS256", "ES256")
    """Accepted signature algorithms."""
    leeway: Annotated[NonNegativeFloat, Field(le=300)] = 30.0
    """Tolerated clock difference in seconds."""
    user: Text = "sub"
    """The claim with the caller's name; dots address nested claims, as in `profile.email`."""
    role: Text | None = None
    """The claim with the caller's roles, a text or a list, such as `realm_access.roles`."""
    admin: Texts = ()
    """Roles that make an admin; every other caller is a user."""
    cache: PositiveFloat = 60.0
    """Seconds for which a verified token is trusted without another check, at most until it expires."""


class IdentityHeader(Strict):
    """Callers that a gateway names in a header, which is trusted from `listen.trusted_proxies` only."""

    user: HeaderName = "X-Forwarded-User"
    """The header with the caller's name."""
    role: HeaderName | None = None
    """The header with the caller's role, `user` or `admin`, such as `X-Forwarded-Role`."""
    admins: tuple[Text, ...] = ()
    """Names of callers that are admins."""

    @property
    def names(self) -> frozenset[str]:
        """Of the headers, in lower case."""
        return frozenset(name.lower() for name in (self.user, self.role) if name is not None)
