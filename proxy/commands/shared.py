"""What several commands have in common."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

from proxy import config as configuration
from proxy.errors import ConfigError

PATIENCE: Final = 5.0
"""Seconds that a command waits at its end for tasks that are still running."""
HERE: Final = "http://127.0.0.1:8080"
Result = TypeVar("Result")


def command(commands: Any, name: str, help: str, more: str = "") -> argparse.ArgumentParser:
    """The parser of a command, whose own `--help` begins with what it does.

    commands: the object to which `argparse` adds parsers.
    """
    description = f"{help[:1].upper()}{help[1:]}. {more}"
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=description)
    return parser


def add_config(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML file; by default $GEMMAPY_CONFIG, then ./config/proxy.yaml, then the packaged one",
    )


def add_server(one: argparse.ArgumentParser, whose: str) -> None:
    """Add the options for reaching a running server.  whose: the key's owner, as in "an admin's key"."""
    one.add_argument("--url", default=HERE, help=f"where the server listens, by default {HERE}")
    one.add_argument("--key", default=os.environ.get("GEMMAPY_KEY", ""), help=f"{whose} key, by default $GEMMAPY_KEY")


def path_of(args: argparse.Namespace) -> Path:
    """The configuration file to use.  Raises ConfigError if GEMMAPY_CONFIG names a file that does not exist."""
    path: Path = args.config or configuration.default_path()
    if args.config is None and not path.exists():
        raise ConfigError([f"{path}, which GEMMAPY_CONFIG names, does not exist; unset it, or pass --config FILE"])
    return path


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine, with uvloop if it is installed."""
    try:
        import uvloop
    except ImportError:
        runner = asyncio.Runner()
    else:
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    try:
        return runner.run(work)
    finally:
        if all_ended(runner.get_loop()):
            runner.close()  # this would wait without limit for tasks that do not end


def all_ended(loop: asyncio.AbstractEventLoop) -> bool:
    """Cancel all tasks; gives whether they ended within PATIENCE seconds."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    return not left or not loop.run_until_complete(asyncio.wait(left, timeout=PATIENCE))[1]
