"""Where features keep what must outlive a call."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, SecretStr, model_validator

from proxy.settings.base import MIB, Strict, check_port

SCHEMES = ("redis", "rediss", "redis+cluster", "rediss+cluster")


def _redis_url(url: SecretStr) -> SecretStr:
    parts = urlsplit(url.get_secret_value())
    if parts.scheme not in SCHEMES or not parts.hostname:
        raise ValueError(f"this is not a URL with one of the schemes {', '.join(SCHEMES)}")
    check_port(parts)
    return url


class Memory(Strict):
    """A store inside the process; every worker has its own."""

    max_bytes: PositiveInt = 256 * MIB
    """Bytes of everything in it; what was used longest ago makes room."""


class Disk(Strict):
    """A store in one SQLite file, which survives a restart and is shared by all workers."""

    path: str = "data/store.db"
    """The file; it and its directory are created if they are missing."""
    max_bytes: PositiveInt = 1024 * MIB
    """Bytes of everything in it; what was used longest ago makes room.  The file may be a quarter larger."""


class Store(Strict):
    """A named store: exactly one of `memory`, `disk`, `redis` and `lancedb`."""

    memory: Memory | None = None
    """A store inside the process."""
    disk: Disk | None = None
    """A store in one SQLite file."""
    redis: Annotated[SecretStr, AfterValidator(_redis_url)] | None = None
    """URL of a Redis, preferably from the environment: `redis://`, `rediss://` for TLS (`?ssl_ca_certs=FILE` for your
    own certificate authority), `redis+cluster://` or `rediss+cluster://` for a cluster.  Redis limits its own size:
    give it `maxmemory` and an `lru` or `lfu` policy."""
    lancedb: Annotated[str, Field(min_length=1)] | None = None
    """Texts and their vectors, for `documents`: a directory, or object storage by its URL (`s3://…`, `gs://…`, `az://…`),
    whose credentials are read from the environment."""
    timeout: PositiveFloat = 0.05
    """Seconds that one operation of a Redis may take.  After five failures in a row it is not used for five seconds."""

    @model_validator(mode="after")
    def _one_kind(self) -> Store:
        if sum(kind is not None for kind in (self.memory, self.disk, self.redis, self.lancedb)) != 1:
            raise ValueError("a store is one of `memory: {}`, `disk: {}`, `redis: URL` and `lancedb: PATH`")
        return self
