"""What several commands need."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from proxy import config as configuration
from proxy.errors import ConfigError

Result = TypeVar("Result")


def add_config(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--config", type=Path, help="YAML file; else $GEMMAPY_CONFIG, ./config/proxy.yaml, the packaged one"
    )


def path_of(told: argparse.Namespace) -> Path:
    """Raises ConfigError where there is no such file."""
    path: Path = told.config or configuration.default_path()
    if told.config is None and not path.exists():
        raise ConfigError([f"{path}, which GEMMAPY_CONFIG names, does not exist; unset it, or say --config FILE"])
    return path


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """On uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)
