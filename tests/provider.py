"""An identity provider for tests: signing keys, tokens, and a server for its JWKS."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from proxy.port import Port

ISSUER, AUDIENCE = "https://id.example.com/realms/home", "gemmapy"


@lru_cache
def rsa_key(number: int = 0, size: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, size)


@lru_cache
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def public(key: Any, **more: Any) -> dict[str, Any]:
    """One entry of a JWKS."""
    way = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**way.to_jwk(key.public_key(), as_dict=True), "use": "sig", **more}


def claims(**changes: Any) -> dict[str, Any]:
    """A token's claims; a claim that is None is left out."""
    now = int(time.time())
    told = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": now, "exp": now + 300, **changes}
    return {name: value for name, value in told.items() if value is not None}


def token(key: Any = None, algorithm: str = "RS256", kid: str | None = "one", **changes: Any) -> str:
    head = {} if kid is None else {"kid": kid}
    return jwt.encode(claims(**changes), key or rsa_key(), algorithm, head)


@dataclass
class Provider:
    """keys: entries of its JWKS.  status: of every response.  asked: number of requests so far."""

    keys: list[dict[str, Any]] = field(default_factory=lambda: [public(rsa_key(), kid="one")])
    status: int = 200
    asked: int = 0
    url: str = ""
    body: bytes | None = None
    hangs: bool = False

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.asked += 1
        if self.hangs:
            await asyncio.sleep(30)
        body = json.dumps({"keys": self.keys}).encode() if self.body is None else self.body
        return web.Response(status=self.status, body=body, headers={"Location": "/elsewhere"})


@asynccontextmanager
async def provider(made: Provider | None = None) -> AsyncIterator[Provider]:
    made = made or Provider()
    runner = web.ServerRunner(web.Server(made.answer), shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = Port(runner, "127.0.0.1", 0)
        await site.start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/jwks"
        yield made
    finally:
        await runner.cleanup()
