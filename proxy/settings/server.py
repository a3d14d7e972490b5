"""How the server meets its callers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, SecretStr, Tag

from proxy.settings.base import MIB, BasePath, Network, Origin, Strict

ChainName = Literal["chat", "completions", "embeddings"]
"""Those that clients ask for."""


class Listen(Strict):
    """Where the server listens.  Changes require a restart."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address to bind.  Any other than a loopback address requires `keys`, `accounts`, `jwt` or `identity_header`."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """TCP port; 0 chooses a free one."""
    drain: NonNegativeFloat = 30.0
    """Seconds that running calls may take to finish when the server stops."""
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Worker processes; more than one run under a supervisor, which restarts those that die."""
    base_path: BasePath = ""
    """Path under which a gateway serves this server, such as `/llm`, if the gateway leaves it in the URL."""
    trusted_proxies: tuple[Network, ...] = ()
    """Addresses and networks of gateways whose `X-Forwarded-For`, `X-Forwarded-Proto` and `identity_header` are
    trusted."""


class Key(Strict):
    """A bearer key with a role."""

    key: SecretStr
    """The secret, preferably from the environment: `"${ALICE_KEY}"`."""
    role: Literal["user", "admin"] = "user"
    """What it allows: `user` the chains, `admin` everything."""
    models: tuple[str, ...] | None = None
    """Patterns of the models that it allows, such as `gemma*`; if unset, all."""
    routes: tuple[ChainName, ...] | None = None
    """Chains that it allows; if unset, all."""


def _form(given: object) -> str:
    return "mapping" if isinstance(given, dict | Key) else "text"


SecretOrKey = Annotated[
    Annotated[SecretStr, Tag("text")] | Annotated[Key, Tag("mapping")],
    Discriminator(_form),  # so that what is wrong in a mapping is not told as being no text
]


class Requests(Strict):
    """Limits of requests."""

    max_bytes: PositiveInt = 32 * MIB
    """Bytes of a request's body, after decompression; more is a 413."""
    body_timeout: PositiveFloat = 60.0
    """Seconds that a request's body may take to arrive; more is a 408."""
    max_depth: Annotated[int, Field(ge=8, le=200)] = 64
    """Levels of nesting of a request's JSON; more is a 400."""
    max_choices: PositiveInt = 8
    """The largest `n`."""
    max_inputs: PositiveInt = 2048
    """Texts in one embeddings request."""
    image_hosts: tuple[str, ...] = ()
    """Hosts from which http(s) images are fetched; if empty, these are refused.  Private addresses are never
    fetched."""
    max_image_bytes: PositiveInt = 20 * MIB
    """Bytes of one image, decoded."""


class Streams(Strict):
    """How answers are streamed to clients."""

    heartbeat: NonNegativeFloat = 10.0
    """Seconds without data after which a waiting stream gets a comment line; 0 turns this off."""
    buffer_bytes: PositiveInt = MIB
    """Bytes buffered for a client that reads more slowly than the model writes."""
    slow_reader: PositiveFloat = 30.0
    """Seconds that the buffer may stay full before the call is ended with an error."""


class Web(Strict):
    """Who may call from a browser."""

    origins: tuple[Origin, ...] = ()
    """Origins that get CORS headers, such as `https://app.example.com`, or `https://*.example.com` for every subdomain
    but not the domain itself; `*` is any.  If empty, CORS is off."""
    hosts: tuple[str, ...] = ()
    """Host names accepted in addition to loopback ones while no keys are configured."""


class Log(Strict):
    """What the server writes to standard error.  Changes require a restart."""

    format: Literal["plain", "json"] = "plain"
    """Plain text, or one JSON object per line."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is written.  Request lines are `info`; those of successful probes `debug`."""
