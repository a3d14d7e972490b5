"""The accounts of one configuration, which verify API keys against the database."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from types import TracebackType
from typing import TYPE_CHECKING

from proxy.accounts import keys
from proxy.accounts.secret import OtherSecret
from proxy.accounts.store import ROOT, Store
from proxy.accounts.tables import TABLES
from proxy.accounts.uses import Uses
from proxy.accounts.verified import Verified
from proxy.errors import Busy, ConfigError
from proxy.host import Services
from proxy.settings import Accounts as Settings
from proxy.types import Caller

if TYPE_CHECKING:
    from proxy.sql.database import Database

log = logging.getLogger(__name__)
FIRST = "No admin has a key yet.  This one is not shown again: {key}"


class Accounts(AbstractAsyncContextManager["Accounts"]):
    """names: of the keys in the file, which no user may have.  rooted: whether an admin exists outside the database."""

    tables = TABLES

    def __init__(
        self,
        settings: Settings,
        services: Services,
        opened: Callable[[], Database],
        names: Sequence[str] = (),
        rooted: bool = False,
    ) -> None:
        self.settings = settings
        self.names = frozenset(names)
        self.rooted = rooted
        self.clock = services.clock
        self.store = Store(opened, services.clock)
        self.state = services.process_state(self.place(), lambda: State(self.store, services))

    def place(self) -> str:
        """The name under which the state is kept; it contains the secret's digest, so another secret starts anew."""
        given = self.settings.secret
        told = "" if given is None else hashlib.sha256(given.get_secret_value().encode()).hexdigest()
        return f"accounts {told}"

    async def __aenter__(self) -> Accounts:
        """To be entered after the tables were migrated.

        Raises ConfigError if the database is unavailable, or has keys made with another secret.
        """
        try:
            if self.state.secret is None:
                self.state.secret = await self.begun()
            else:
                with suppress(Busy):
                    await self.store.settle(self.state.secret)
        except (Busy, OtherSecret) as error:
            raise ConfigError([error.why]) from error
        with suppress(Busy):  # a missing warning must not keep the configuration from being used
            for name in await self.store.names(sorted(self.names)):
                log.warning("keys.%s: a user in the database has this name, too; both count as one caller", name)
        return self

    async def begun(self) -> bytes:
        """The secret of the keys; also creates the first admin's key if needed.  Raises DatabaseAway, OtherSecret."""
        secret = await secret_of(self.settings, self.store)
        await self.store.settle(secret)
        if self.settings.bootstrap and not self.rooted:
            root = ROOT if ROOT not in self.names else f"{ROOT}-first"
            if (key := await self.store.bootstrap(secret, root)) is not None:
                print(FIRST.format(key=key), file=sys.stderr, flush=True)  # noqa: T201  (a log would store it)
        return secret

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.state.uses.close()

    def owns(self, token: str) -> bool:
        """Whether a bearer token looks like a key of the database."""
        return keys.could_be(token)

    def recall(self, digest: bytes) -> Caller | None:
        return self.state.verified.recall(digest)

    async def verify(self, token: str, digest: bytes) -> Caller:
        """The caller of a key.  Raises Unauthenticated, or Busy while the database is unavailable."""
        return await self.state.verified.verify(digest, keys.hash_of(token, self.secret))

    @property
    def secret(self) -> bytes:
        if self.state.secret is None:
            raise LookupError("the accounts are not open")
        return self.state.secret

    def key_changed(self, id: str) -> None:
        self.state.verified.forget(lambda caller: caller.key == id)

    def user_changed(self, name: str) -> None:
        self.state.verified.forget(lambda caller: caller.name == name)


class State:
    """What survives a reload."""

    def __init__(self, store: Store, services: Services) -> None:
        self.uses = Uses(store.used, services.clock, services.background)
        self.verified = Verified(store.find, services.clock, services.background, self.uses.note)
        self.secret: bytes | None = None


async def secret_of(settings: Settings, store: Store) -> bytes:
    """The secret in the settings, else the one in the database.  Raises DatabaseAway."""
    given = settings.secret
    return await store.secret() if given is None else given.get_secret_value().encode()
