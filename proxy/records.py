"""What the database rows of all features have in common."""

from __future__ import annotations

from proxy.host import Host
from proxy.sql.database import Database


class Records:
    """The parent of classes that read and write the rows of a feature."""

    __slots__ = ()
    host: Host

    @property
    def database(self) -> Database:
        return self.host.database

    def now(self) -> int:
        """Microseconds since 1970, the unit of times in rows."""
        return int(self.host.clock.time() * 1e6)
