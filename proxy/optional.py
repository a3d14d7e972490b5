"""Parts that are imported only if the configuration needs them, which makes the start faster."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from proxy.config import Config, Demo
from proxy.host import DATABASE, RequestReader, Services
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


def accounts_api(accounts: Accounts, requests: RequestReader) -> Iterable[Route]:
    from proxy.accounts.api import Api

    return Api(accounts, requests).routes()


def tokens_of(config: Config, services: Services) -> Tokens | None:
    if config.jwt is None:
        return None
    from proxy.webtokens.tokens import Tokens  # imports cryptography, which takes time

    return Tokens(config.jwt, services)


def database_of(settings: DatabaseSettings, services: Services) -> Database:
    """The database, opened once per process; it connects when it is first used."""

    def opened() -> Database:
        from proxy.sql.database import Database  # imports SQLAlchemy, which takes time

        made = Database(settings.url.get_secret_value(), settings.connections, settings.timeout)
        services.opened.push_async_callback(made.aclose)
        return made

    return services.process_state(DATABASE, opened)


async def demo_url(services: Services, name: str, demo: Demo) -> str:
    """The URL of a simulated Ollama, started on a free loopback port; it survives reloads."""
    from proxy.upstreams.demo import Simulator, running  # takes time to import

    key = f"demo {name} {demo.delay} {demo.load_time}"
    if key not in services.state:
        simulator = Simulator(delay=demo.delay, load_time=demo.load_time)
        services.state[key] = await services.opened.enter_async_context(running(simulator))
    return str(services.state[key])
