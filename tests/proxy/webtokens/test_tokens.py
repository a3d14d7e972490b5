"""Only tokens that the identity provider has signed for this server are accepted."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from proxy.errors import Busy, ConfigError, Unauthenticated
from proxy.server import services
from proxy.settings import Jwt
from proxy.webtokens import keyset
from proxy.webtokens.keyset import public_keys
from proxy.webtokens.tokens import Tokens
from tests.clocks import Watch
from tests.provider import AUDIENCE, ISSUER, Provider, claims, ec_key, provider, public, rsa_key, token


def settings(**more: Any) -> Jwt:
    return Jwt(**{"jwks": "x", "issuer": ISSUER, "audience": AUDIENCE, **more})


@asynccontextmanager
async def tokens(keys: Any = None, clock: Watch | None = None, **more: Any) -> AsyncIterator[Tokens]:
    """A verifier with these keys, or with those from the URL `jwks`."""
    async with services() as lent:
        made = Tokens(settings(**more), lent)
        if clock is not None:
            made.clock = clock
        if keys is not None:
            made.keys.keys = public_keys(json.dumps({"keys": keys}).encode(), frozenset(made.settings.algorithms))
            made.keys.asked = lent.clock.monotonic()
        yield made


async def verdict(made: Tokens, given: str) -> str:
    """The caller's name and role, or the error message."""
    assert made.owns(given)
    try:
        caller = await made.verify(given, given.encode())
    except (Unauthenticated, Busy) as error:
        return str(error)
    return f"{caller.name} {caller.role}"


def part(told: object) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(told).encode()).rstrip(b"=")


def forged(head: dict[str, Any], secret: bytes | None) -> str:
    """A token with an HMAC, or with no signature at all."""
    body = part({"typ": "JWT", **head}) + b"." + part(claims())
    signature = b"" if secret is None else hmac.digest(secret, body, "sha256")
    return (body + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


ONE = [public(rsa_key(), kid="one")]
BOTH = [*ONE, public(ec_key(), kid="two")]


async def test_a_token_names_its_caller() -> None:
    async with tokens(BOTH) as made:
        assert await verdict(made, token()) == "alice user"
        assert await verdict(made, token(ec_key(), "ES256", "two")) == "alice user"
        assert await verdict(made, token(kid=None)) == "alice user"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"exp": int(time.time()) - 60}, "has expired"),
        ({"exp": None}, "has no claim 'exp'"),
        ({"nbf": int(time.time()) + 6000}, "is not valid yet"),
        ({"iss": "https://evil.example.com"}, "is another issuer's"),
        ({"iss": None}, "has no claim 'iss'"),
        ({"aud": "another"}, "is meant for another audience"),
        ({"aud": None}, "has no claim 'aud'"),
        ({"sub": None}, "has no caller's name in the claim 'sub'"),
        ({"sub": 17}, "has no caller's name in the claim 'sub'"),
        ({"exp": "soon"}, "cannot be read"),
        ({"exp": float("inf")}, "cannot be read"),
    ],
)
async def test_a_tokens_claims_are_checked(changes: dict[str, Any], why: str) -> None:
    async with tokens(ONE) as made:
        assert await verdict(made, token(**changes)) == f"The token {why}."


@pytest.mark.parametrize("other", [{"sub": 17}, {"sub": None}, {"jti": 17}])
async def test_claims_that_are_not_the_users_can_have_any_type(other: dict[str, Any]) -> None:
    async with tokens(ONE, user="email") as made:
        assert await verdict(made, token(email="a@b.c", **other)) == "a@b.c user"


@pytest.mark.parametrize("name", ["", "a" * 300, "a\nb", "a\x00"])
async def test_an_invalid_user_name_is_refused(name: str) -> None:
    async with tokens(ONE, user="name") as made:
        assert "has no caller" in await verdict(made, token(name=name))


@pytest.mark.parametrize(
    ("role", "told", "verdict_"),
    [
        ("realm_access.roles", {"realm_access": {"roles": ["x", "boss"]}}, "admin"),
        ("realm_access.roles", {"realm_access": ["boss"]}, "user"),
        ("https://example.com/roles", {"https://example.com/roles": ["boss"]}, "admin"),
        ("scope", {"scope": "openid boss"}, "admin"),
        ("scope", {"scope": "bosses"}, "user"),
        ("scope", {"scope": 1}, "user"),
        ("role", {}, "user"),
        (None, {"role": "boss"}, "user"),
    ],
)
async def test_claims_become_roles(role: str | None, told: dict[str, Any], verdict_: str) -> None:
    async with tokens(ONE, role=role, admin="boss", user="profile.email") as made:
        assert await verdict(made, token(profile={"email": "a@b.c"}, **told)) == f"a@b.c {verdict_}"


async def test_a_token_cannot_choose_another_algorithm_or_key() -> None:
    pem = rsa_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    modulus = base64.urlsafe_b64decode(ONE[0]["n"] + "==")
    attempts = [
        forged({"alg": "none", "kid": "one"}, None),
        forged({"alg": "None"}, None),
        forged({"alg": "", "kid": "one"}, None),
        *(forged({"alg": "HS256", "kid": "one"}, secret) for secret in (pem, pem.strip(), modulus, b"")),
        *(forged({"alg": "RS256", "kid": "one"}, secret) for secret in (pem, None)),
        forged({"alg": "HS256", "kid": "one", "jwk": ONE[0]}, pem),
        token(rsa_key(1)),  # another key under this one's ID
        token(ec_key(), "ES256", "one"),
        token(rsa_key(), "PS256", "one"),
        jwt.encode(claims(), rsa_key(1), "RS256", {"kid": "one", "jwk": public(rsa_key(1))}),
        jwt.encode(claims(), rsa_key(1), "RS256", {"kid": "one", "jku": "http://127.0.0.1:9/"}),
    ]
    async with tokens(ONE) as made:
        for attempt in attempts:
            assert (await verdict(made, attempt)).startswith("The token is signed"), attempt


async def test_a_modified_token_is_refused() -> None:
    head, body, signature = token().split(".")
    other = part(claims(sub="root")).decode()
    async with tokens(ONE) as made:
        assert "signed with an unknown key" in await verdict(made, f"{head}.{other}.{signature}")
        assert "signed with an unknown key" in await verdict(made, f"{head}.{body}.{signature[:-8]}AAAAAAAA")


@pytest.mark.parametrize("head", [b"[" * 9000, b"{}", b"[]", b"1", b"\xff", b'{"alg":"RS256","crit":["x"]}'])
async def test_an_invalid_token_header_is_refused(head: bytes) -> None:
    given = f"eyJ{base64.urlsafe_b64encode(head).decode().rstrip('=')}.e30.e30"
    bare = f"{base64.urlsafe_b64encode(head).decode().rstrip('=')}.e30.e30"
    async with tokens(ONE) as made:
        for one in (given, bare):
            with pytest.raises(Unauthenticated):
                await made.verify(one, b"")


@pytest.mark.parametrize("given", ["sk-gemmapy-abc", "a.b.c", "eyJ", "eyJa.b", f"eyJ{20_000 * 'a'}.b.c", "eyJ.é.c"])
async def test_other_credentials_are_not_taken_for_tokens(given: str) -> None:
    async with tokens(ONE) as made:
        assert not made.owns(given)


def test_secret_weak_and_unsupported_keys_of_a_set_are_ignored() -> None:
    secret = {"kty": "oct", "k": "c2VjcmV0", "kid": "s"}
    unusable = [
        secret,
        {**secret, "alg": "RS256"},
        public(rsa_key(2, 1024), kid="weak"),
        public(rsa_key(), use="enc"),
        public(rsa_key(), alg="HS256"),
        public(rsa_key(), alg=["RS256"]),
        {"kty": "RSA", "n": "!", "e": "AQAB"},
        {"kty": "EC", "crv": "secp256k1", "x": "a", "y": "b"},
        {},
        [],
    ]
    allowed = frozenset({"RS256", "ES256"})
    with pytest.raises(ValueError, match="no public key"):
        public_keys(json.dumps({"keys": unusable}).encode(), allowed)
    (good,) = public_keys(json.dumps({"keys": [*unusable, public(rsa_key(), alg="RS256")]}).encode(), allowed)
    assert good.algorithms == {"RS256"}


@pytest.mark.parametrize("algorithms", [["none"], ["HS256"], ["RS256", "HS512"], []])
def test_insecure_algorithms_cannot_be_configured(algorithms: list[str]) -> None:
    with pytest.raises(ValueError, match="algorithms"):
        settings(algorithms=algorithms)


async def test_a_token_can_expire_beyond_the_range_of_floats() -> None:
    async with tokens(ONE) as made:
        assert await verdict(made, token(exp=10**400)) == "alice user"


async def test_a_verified_token_is_cached_for_a_minute_and_never_beyond_its_expiry() -> None:
    clock = Watch(time.time())
    async with tokens(ONE, clock) as made:
        long, short = token(), token(exp=int(clock.now) + 20)
        for one in (long, short):
            await made.verify(one, hashlib.sha256(one.encode()).digest())
        recalled = [made.recall(hashlib.sha256(one.encode()).digest()) for one in (long, short)]
        assert all(recalled) and made.recall(b"another") is None
        clock.move(21)
        assert [made.recall(hashlib.sha256(one.encode()).digest()) is None for one in (long, short)] == [False, True]
        clock.move(40)
        assert made.recall(hashlib.sha256(long.encode()).digest()) is None


# --- where the keys are ------------------------------------------------------------------------------


async def test_keys_are_fetched_again_when_a_token_names_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with provider() as there, tokens(jwks=there.url) as made, made:
        assert await verdict(made, token()) == "alice user"
        there.keys.append(public(rsa_key(1), kid="new"))
        for _ in range(3):
            assert "signed with an unknown key" in await verdict(made, token(rsa_key(1), kid="new"))
        assert there.asked == 1
        monkeypatch.setattr(keyset, "SELDOM", 0.0)
        assert await verdict(made, token(rsa_key(1), kid="new")) == "alice user"
        assert there.asked == 2


@pytest.mark.parametrize("kid", ["one", None])
async def test_keys_are_fetched_again_when_the_signature_matches_none_of_that_id(
    monkeypatch: pytest.MonkeyPatch, kid: str | None
) -> None:
    async with provider() as there, tokens(jwks=there.url) as made, made:
        assert await verdict(made, token()) == "alice user"
        there.keys = [public(rsa_key(1), kid="one")]
        for _ in range(3):
            assert "signed with an unknown key" in await verdict(made, token(rsa_key(1), kid=kid))
        assert there.asked == 1
        monkeypatch.setattr(keyset, "SELDOM", 0.0)
        assert await verdict(made, token(rsa_key(1), kid=kid)) == "alice user"
        assert there.asked == 2


async def test_while_the_provider_is_down_its_last_keys_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyset, "SELDOM", 0.0)
    async with provider() as there, tokens(jwks=there.url) as made, made:
        assert await verdict(made, token()) == "alice user"
        for trouble in ({"status": 500}, {"body": b"nonsense"}, {"body": b'{"keys": []}'}):
            for name, value in trouble.items():
                setattr(there, name, value)
            assert "signed with an unknown key" in await verdict(made, token(kid="new"))
            assert await verdict(made, token()) == "alice user"
        assert there.asked == 4


@pytest.mark.parametrize(
    "there",
    [
        Provider(status=503),
        Provider(status=302),
        Provider(body=b"x" * (keyset.LARGEST + 1)),
        Provider(keys=[{"kty": "oct", "k": "c2VjcmV0"}]),
        Provider(hangs=True),
    ],
    ids=["away", "redirected", "too large", "secret", "hanging"],
)
async def test_a_provider_whose_keys_were_never_available_is_a_clear_error(
    there: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyset, "PATIENCE", 0.05 if there.hangs else 60.0)
    async with provider(there), tokens(jwks=there.url) as made, made:
        with pytest.raises(Busy) as failed:
            await made.verify(token(), b"")
        assert (failed.value.status, failed.value.code) == (503, "keys_unavailable")
        with pytest.raises(Busy):
            await made.verify(token(), b"")
        assert there.asked == 1  # not fetched again at once


async def test_a_key_file_is_read_at_the_start_or_is_a_configuration_error(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    async with tokens(jwks=str(file)) as made:
        with pytest.raises(ConfigError, match=r"jwt\.jwks: .*keys\.json: .*No such file"):
            await made.__aenter__()
        file.write_text(json.dumps({"keys": ONE}))
        async with made:
            assert await verdict(made, token()) == "alice user"
