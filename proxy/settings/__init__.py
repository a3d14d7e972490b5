"""The settings of a configuration file: what each is, its default, and what it may be."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from proxy.settings.base import Strict as Strict
from proxy.settings.costs import Costs as Costs
from proxy.settings.database import Database as Database
from proxy.settings.identity import Accounts as Accounts
from proxy.settings.identity import IdentityHeader as IdentityHeader
from proxy.settings.identity import Jwt as Jwt
from proxy.settings.server import Key as Key
from proxy.settings.server import Listen as Listen
from proxy.settings.server import Log as Log
from proxy.settings.server import Requests as Requests
from proxy.settings.server import SecretOrKey as SecretOrKey
from proxy.settings.server import Streams as Streams
from proxy.settings.server import Web as Web
from proxy.settings.stores import Store as Store
from proxy.settings.upstreams import Demo as Demo
from proxy.settings.upstreams import Line as Line
from proxy.settings.upstreams import Model as Model
from proxy.settings.upstreams import Upstream as Upstream


def _plugin_name(given: object) -> object:
    if not isinstance(given, str):
        raise ValueError("a chain lists names of plugins; their settings belong under `plugins:`")
    return given


PluginName = Annotated[str, BeforeValidator(_plugin_name)]


class Config(Strict):
    """One configuration file."""

    listen: Listen = Field(Listen(), examples=[{"host": "127.0.0.1", "port": 8080}])
    """Where the server listens."""
    upstreams: dict[str, Upstream] = Field(
        {"local": Upstream(ollama=("http://127.0.0.1:11434",))},
        min_length=1,
        examples=[{"local": {"ollama": "http://127.0.0.1:11434"}}],
    )
    """Named places where models live."""
    models: dict[str, Model] = Field({}, examples=[{"gpt-4o-mini": {"alias": "llama3.2:3b"}}])
    """Aliases, pins and permissions, by model name."""
    keys: dict[str, SecretOrKey] = Field({}, examples=[{"alice": "${ALICE_KEY}"}])
    """Bearer keys by the caller's name: a secret, or `{key, role}`.  Without keys, `accounts`, `jwt` and
    `identity_header` the server listens on loopback only, and everybody is an admin."""
    accounts: Accounts | None = None
    """Users and API keys in the database; `{}` turns them on."""
    jwt: Jwt | None = None
    """Callers authenticated by an identity provider."""
    identity_header: IdentityHeader | None = None
    """Callers that a trusted gateway names."""
    stores: dict[str, Store] = Field({}, examples=[{"shared": {"redis": "redis://127.0.0.1:6379/0"}}])
    """Named stores for data of plugins."""
    database: Database = Field(Database(), examples=[{"url": "sqlite:///data/gemmapy.db"}])
    """The database for users, keys, records and other permanent data."""
    costs: Costs = Costs()
    """What calls cost."""
    writes: str | None = None
    """Name of the `ollama` upstream whose models admins may pull, create, copy, push and delete through Ollama's own
    endpoints; if unset, these are off."""
    params: Literal["lenient", "strict"] = "lenient"
    """`lenient` reports in `x-gemmapy-params` what was emulated, changed or ignored; `strict` refuses it."""
    requests: Requests = Requests()
    """Limits of requests."""
    streams: Streams = Streams()
    """How answers are streamed to clients."""
    web: Web = Web()
    """Who may call from a browser."""
    log: Log = Log()
    """What the server writes to standard error."""
    plugins: dict[str, dict[str, Any] | None] = Field({}, examples=[{"cache": {"ttl": 3600}, "retry": {}}])
    """Named plugin instances; `use` names the plugin and defaults to the instance's name."""
    chains: dict[Literal["chat", "completions", "embeddings", "internal"], tuple[PluginName, ...]] = Field(
        examples=[{"chat": [], "embeddings": []}]
    )
    """Plugins by route, in order from the client to the model.  A route without a chain is off.  `internal` is for
    calls that plugins make themselves."""

    @property
    def identity_headers(self) -> frozenset[str]:
        """Names of the headers in which a gateway names the caller, in lower case."""
        return frozenset() if self.identity_header is None else self.identity_header.names
