"""`gemmapy-proxy keys`: manage the API keys in the database, whether or not a server is running."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from proxy.commands.shared import add_config, command, path_of, run
from proxy.config import Config
from proxy.errors import ConfigError, ProxyError

if TYPE_CHECKING:  # SQLAlchemy is imported only by the commands that need it
    from proxy.accounts.records import Key, Wanted
    from proxy.accounts.store import Store

UNITS: Final = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
ROUTES: Final = ("chat", "completions", "embeddings")
PAGE: Final = 100
RUNS: Final = (
    "The server may be running or not; the configuration needs `accounts`, with the secret that the server has."
)
Work: TypeAlias = Callable[["Store", Config, argparse.Namespace], Coroutine[Any, Any, None]]


def add(commands: Any) -> None:
    """commands: the object to which `argparse` adds parsers."""
    whole = command(commands, "keys", "make, list and revoke API keys in the database", RUNS)
    verbs = whole.add_subparsers(required=True, metavar="VERB")

    one = command(verbs, "create", "make a key and print it; it cannot be shown again")
    one.add_argument("--user", required=True, help="whose key it is; a user who does not exist yet is made")
    one.add_argument("--name", default="", help="what it is for, such as 'laptop'")
    one.add_argument("--role", choices=("user", "admin"), default="user", help="by default 'user'")
    one.add_argument("--expires", type=life, metavar="TIME", help="90m, 12h, 30d or 2w from now; by default never")
    one.add_argument(
        "--models", nargs="+", metavar="PATTERN", help="models that it opens, such as 'gemma*'; by default all"
    )
    one.add_argument("--routes", nargs="+", choices=ROUTES, help="routes that it opens; by default all")
    finish(one, create)

    one = command(verbs, "list", "list the keys, newest first")
    one.add_argument("--user", help="only this user's")
    finish(one, list_all)

    one = command(verbs, "revoke", "revoke a key, or all of them, for good")
    which = one.add_mutually_exclusive_group(required=True)
    which.add_argument("id", nargs="?", metavar="ID", help="as `keys list` shows it: key_…")
    which.add_argument("--all", action="store_true", help="every key, as before `accounts.secret` becomes another one")
    finish(one, revoke)


def finish(one: argparse.ArgumentParser, work: Work) -> None:
    add_config(one)
    one.set_defaults(do=partial(done, work))


def life(text: str) -> int:
    """The seconds in a duration such as `30d`, `12h`, `90m` or `2w`."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 90m, 12h, 30d or 2w")
    return int(found[1]) * UNITS[found[2]]


def done(work: Work, args: argparse.Namespace) -> int:
    """Run a command with the store of keys.  Raises ConfigError for any failure."""
    try:
        run(with_store(work, args))
    except ProxyError as error:
        raise ConfigError([error.why]) from error
    return 0


async def with_store(work: Work, args: argparse.Namespace) -> None:
    from proxy.config_file import Overrides, reader

    config, _ = reader(path_of(args), Overrides())()
    if config.accounts is None:
        raise ConfigError([f"{path_of(args)} has no `accounts:`, so keys in the database would not work"])
    async with opened(config) as store:
        await work(store, config, args)


@asynccontextmanager
async def opened(config: Config) -> AsyncIterator[Store]:
    """The store of keys, with its tables brought up to date.  Raises DatabaseAway."""
    from proxy.accounts.store import Store
    from proxy.accounts.tables import TABLES
    from proxy.clock import Clock
    from proxy.sql.database import Database

    settings = config.database
    database = Database(settings.url.get_secret_value(), settings.connections, settings.timeout)
    try:
        await database.migrate(TABLES)
        yield Store(lambda: database, Clock())
    finally:
        await database.aclose()


async def create(store: Store, config: Config, args: argparse.Namespace) -> None:
    from proxy.accounts.accounts import secret_of

    if config.accounts is None:
        return
    wanted = wanted_of(config, args)
    key, kept = await store.create(wanted, await secret_of(config.accounts, store), with_user=True)
    print(f"{line(kept)}\nThis key is not shown again:\n{key}")


def wanted_of(config: Config, args: argparse.Namespace) -> Wanted:
    """The key that the arguments describe.  Raises ConfigError for an invalid user or other invalid arguments."""
    from pydantic import ValidationError

    from proxy.accounts.api import NewKey, check_name

    if args.user in config.keys:
        raise ConfigError([f"'{args.user}' is the name of a key under `keys:` in the configuration"])
    try:
        check_name(args.user)
    except ValueError as error:
        raise ConfigError([str(error)]) from None
    given = {name: getattr(args, name) for name in ("user", "name", "role", "models", "routes")}
    try:
        return NewKey.model_validate(given | {"expires_in": args.expires}).wanted(time.time())
    except ValidationError as error:
        raise ConfigError([f"--{one['loc'][0]}: {one['msg']}" for one in error.errors()]) from None


async def list_all(store: Store, config: Config, args: argparse.Namespace) -> None:
    after, some = None, True
    while some:
        keys = await store.keys(PAGE, after, args.user)
        for key in keys:
            print(line(key))
        after, some = (keys[-1].id, len(keys) == PAGE) if keys else (None, False)


async def revoke(store: Store, config: Config, args: argparse.Namespace) -> None:
    print(f"keys revoked: {await store.revoke_all()}" if args.all else line(await store.revoke(args.id)))


def line(key: Key) -> str:
    """One key as a line of text."""
    words = [key.id, f"{key.prefix}…", f"user={key.user}", f"role={key.role}"]
    words += [f"name={key.name!r}"] if key.name else []
    words += [f"models={','.join(key.models)}"] if key.models is not None else []
    words += [f"routes={','.join(key.routes)}"] if key.routes is not None else []
    for name, at in (("created", key.created), ("expires", key.expires), ("revoked", key.revoked)):
        words += [f"{name}={day(at)}"] if at is not None else []
    return " ".join([*words, f"used={day(key.last_used) if key.last_used is not None else 'never'}"])


def day(micros: int) -> str:
    return datetime.fromtimestamp(micros / 1_000_000, UTC).strftime("%Y-%m-%dT%H:%MZ")
