"""Parts that are imported only where a configuration asks for them: a start does not pay for the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from proxy.config import Config, Demo
from proxy.host import DATABASE, Desk, Services
from proxy.identity import has_admin
from proxy.settings import Database as DatabaseSettings
from proxy.types import Route

if TYPE_CHECKING:
    from proxy.accounts.accounts import Accounts
    from proxy.sql.database import Database, Opener
    from proxy.webtokens.tokens import Tokens


def accounts_of(config: Config, services: Services, database: Opener) -> Accounts | None:
    if config.accounts is None:
        return None
    from proxy.accounts.accounts import Accounts

    return Accounts(config.accounts, services, database, tuple(config.keys), has_admin(config))


def accounts_api(accounts: Accounts, desk: Desk) -> Iterable[Route]:
    from proxy.accounts.api import Api

    return Api(accounts, desk).routes()


def tokens_of(config: Config, services: Services) -> Tokens | None:
    if config.jwt is None:
        return None
    from proxy.webtokens.tokens import Tokens  # only those who use them pay for cryptography

    return Tokens(config.jwt, services)


def database_of(settings: DatabaseSettings, services: Services) -> Database:
    """Opened once a process; connects when it is first used."""

    def opened() -> Database:
        from proxy.sql.database import Database  # only those who keep records pay for SQLAlchemy

        made = Database(settings.url.get_secret_value(), settings.connections, settings.timeout)
        services.opened.push_async_callback(made.aclose)
        return made

    return services.kept(DATABASE, opened)


async def demo_url(services: Services, name: str, demo: Demo) -> str:
    """The address of a simulated Ollama, started on a free loopback port and kept over reloads."""
    from proxy.upstreams.demo import Simulator, running  # only those who want a demo pay for it

    key = f"demo {name} {demo.delay} {demo.load_time}"
    if key not in services.state:
        simulator = Simulator(delay=demo.delay, load_time=demo.load_time)
        services.state[key] = await services.opened.enter_async_context(running(simulator))
    return str(services.state[key])
