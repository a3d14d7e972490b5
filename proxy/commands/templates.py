"""`gemmapy-proxy templates`: check prompt templates before they are used."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proxy.commands.shared import command
from proxy.errors import ConfigError


def add(commands: Any) -> None:
    """commands: the object to which `argparse` adds parsers."""
    whole = command(commands, "templates", "check files of prompt templates")
    verbs = whole.add_subparsers(required=True, metavar="VERB")

    one = command(verbs, "lint", "report errors, and warn of what is probably not meant")
    one.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="a YAML file, or a folder of them")
    one.add_argument("--strict", action="store_true", help="exit with 1 for warnings, too")
    one.set_defaults(do=lint)


def lint(args: argparse.Namespace) -> int:
    """Print warnings; gives the exit status.  Raises ConfigError with all errors."""
    found = [line for path in args.paths for line in looked_through(path)]
    print(*found, sep="\n") if found else print("no problems found")
    return int(bool(found) and args.strict)


def looked_through(path: Path) -> Iterator[str]:
    from plugins.templates import library, yamltext
    from plugins.templates.lint import warnings

    try:
        documents = library.read(path) if path.is_dir() else yamltext.read(str(path), path.read_text(encoding="utf-8"))
    except yamltext.Unreadable as error:
        raise ConfigError(error.problems) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}:1: {error}"]) from None
    library.Library(documents)
    for one in documents:
        for warning in warnings(one):
            yield f"{path}: {one.name}@{one.version}: {warning}"
