"""`gemmapy-proxy documents`: send files to a running server, or have the index rebuilt from the database."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from proxy.commands.shared import add_config, add_server, command, path_of, run
from proxy.errors import ConfigError, ProxyError

if TYPE_CHECKING:  # imported only by the commands that need them
    import aiohttp
    from rich.progress import Progress, TaskID

ENDED: Final = ("ready", "failed")
LOOK: Final = 0.3
"""Seconds between two queries for a job's progress."""
AT_ONCE: Final = 4


def add(commands: Any) -> None:
    """commands: the object to which `argparse` adds parsers."""
    whole = command(commands, "documents", "add files as documents, or index all documents again")
    verbs = whole.add_subparsers(required=True, metavar="VERB")

    one = command(verbs, "add", "send files, or all files in folders, to a running server")
    one.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file or a folder")
    add_server(one, "your API")
    one.add_argument("--collection", help="the collection's name, by default 'default'")
    one.set_defaults(do=send)

    one = command(verbs, "reindex", "have every document indexed again by the server that runs, or is started next")
    add_config(one)
    one.set_defaults(do=reindex)


def send(args: argparse.Namespace) -> int:
    """Gives the exit status: 1 if a file could not be added."""
    files = [file for path in args.paths for file in found(path)]
    if not files:
        raise ConfigError([f"there is no file in {' '.join(map(str, args.paths))}"])
    failed = run(sent(args, files))
    for line in failed:
        print(line)
    print(f"{len(files) - len(failed)} of {len(files)} files are there")
    return 1 if failed else 0


def found(path: Path) -> Iterator[Path]:
    """The file itself, or the visible files in a folder.  Raises ConfigError if the path does not exist."""
    if path.is_dir():
        yield from (one for one in sorted(path.rglob("*")) if one.is_file() and not one.name.startswith("."))
    elif path.is_file():
        yield path
    else:
        raise ConfigError([f"{path} does not exist"])


async def sent(args: argparse.Namespace, files: Sequence[Path]) -> list[str]:
    """Send all files; gives a line for each that could not be added, with the reason."""
    import aiohttp
    from rich.progress import Progress

    headers = {"Authorization": f"Bearer {args.key}"} if args.key else {}
    turns = asyncio.Semaphore(AT_ONCE)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=120)
    with Progress(transient=True) as progress:
        bar = progress.add_task("documents", total=len(files))
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as http:
            one = partial(added, http, args, turns, progress, bar)
            return [line for line in await asyncio.gather(*map(one, files)) if line]


async def added(
    http: aiohttp.ClientSession,
    args: argparse.Namespace,
    turns: asyncio.Semaphore,
    progress: Progress,
    bar: TaskID,
    file: Path,
) -> str:
    """Send one file when it is its turn; gives a line with the reason if it could not be added, else ""."""
    async with turns:
        said = await tried(http, args, progress, file)
    progress.advance(bar)
    return f"{file}: {said}" if said else ""


async def tried(http: aiohttp.ClientSession, args: argparse.Namespace, progress: Progress, file: Path) -> str:
    import aiohttp

    try:
        return await followed(http, args, progress, file)
    except aiohttp.ClientConnectorError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        return f"no server answers at {args.url}: {why}"
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return str(error) or type(error).__name__


async def followed(http: aiohttp.ClientSession, args: argparse.Namespace, progress: Progress, file: Path) -> str:
    """Send a file and show its progress until it is ready or has failed; gives the error or ""."""
    import aiohttp

    url = f"{args.url.rstrip('/')}/api/rag"
    with file.open("rb") as opened:
        form = aiohttp.FormData({"wait": "1", "source": str(file)}, quote_fields=False)
        if args.collection:
            form.add_field("collection", args.collection)
        form.add_field("file", opened, filename=file.name)
        async with http.post(f"{url}/documents", data=form) as response:
            document = await answer_of(response)
    bar = progress.add_task(file.name[:40], total=1.0) if document["status"] not in ENDED else None
    while document["status"] not in ENDED:
        await asyncio.sleep(LOOK)
        job = await answer_of(await http.get(f"{url}/jobs/{document['job_id']}"))
        document = await answer_of(await http.get(f"{url}/documents/{document['document_id']}"))
        progress.update(bar, completed=job.get("progress", 0))  # type: ignore[arg-type]
    if bar is not None:
        progress.remove_task(bar)
    return str(document["error"]) if document["status"] == "failed" else ""


async def answer_of(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """The JSON of a response; for an error, a document with the status `failed` and the message in `error`."""
    told: dict[str, Any] = await response.json(content_type=None)
    if response.status >= 400:
        return {"error": told["error"]["message"], "status": "failed"}
    return told


def reindex(args: argparse.Namespace) -> int:
    try:
        count = run(queued(args))
    except ProxyError as error:
        raise ConfigError([error.why]) from error
    print(f"{count} documents will be indexed again by the server, once it runs")
    return 0


async def queued(args: argparse.Namespace) -> int:
    """Mark all documents to be indexed again; gives how many.  Raises ConfigError if the configuration has no plugin
    `documents`."""
    from plugins.documents.repair import everything
    from plugins.documents.tables import FEATURE
    from proxy.clock import Clock
    from proxy.config_file import Overrides, reader
    from proxy.registry import uses
    from proxy.sql.database import Database

    path = path_of(args)
    config, _ = reader(path, Overrides())()
    if not uses(config, "documents"):
        raise ConfigError([f"no plugin of {path} is `documents`: there are no documents to index"])
    settings = config.database
    database = Database(settings.url.get_secret_value(), settings.connections, settings.timeout)
    try:
        await database.migrate(FEATURE)
        return await everything(database, Clock())
    finally:
        await database.aclose()
