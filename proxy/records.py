"""What every feature's rows have in common that keeps some."""

from __future__ import annotations

from proxy.host import Host
from proxy.sql.database import Database


class Records:
    """Reads and writes the rows of a feature."""

    __slots__ = ()
    host: Host

    @property
    def database(self) -> Database:
        return self.host.database

    def now(self) -> int:
        """Microseconds since 1970, as rows have them."""
        return int(self.host.clock.time() * 1e6)
