"""Where records are kept."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, PositiveFloat, PositiveInt, SecretStr

from proxy.settings.base import Strict, check_port


def _database_url(url: SecretStr) -> SecretStr:
    text = url.get_secret_value()
    parts = urlsplit(text)
    if parts.scheme == "sqlite" and text.startswith("sqlite:///") and len(text) > len("sqlite:///"):
        return url
    if parts.scheme == "postgresql" and parts.path.strip("/"):
        check_port(parts)
        return url
    raise ValueError("a database is 'sqlite:///PATH' or 'postgresql://USER:PASSWORD@HOST/NAME'")


class Database(Strict):
    """The database for users, keys, records and other permanent data; opened only if something needs it.  Changes
    require a restart."""

    url: Annotated[SecretStr, AfterValidator(_database_url)] = SecretStr("sqlite:///data/gemmapy.db")
    """`sqlite:///PATH`, or `postgresql://USER:PASSWORD@HOST/NAME`, preferably from the environment."""
    connections: PositiveInt = 5
    """Maximum connections of each process."""
    timeout: PositiveFloat = 10.0
    """Seconds to wait for a connection that answers, or for others that write to the same file: once, not for each."""

    @property
    def is_shared(self) -> bool:
        """Whether other servers may keep their records there, too."""
        return self.url.get_secret_value().startswith("postgresql:")
