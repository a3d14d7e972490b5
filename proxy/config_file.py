"""Reads the configuration file, applies what the command line overrides, and watches for changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from proxy import config as configuration
from proxy import registry
from proxy.config import Config
from proxy.errors import ConfigError
from proxy.identity import check_exposure
from proxy.yamlfile import Source

log = logging.getLogger(__name__)

LOOK = 1.0
"""Seconds between two looks at the configuration file."""

Read = Callable[[], tuple[Config, Source]]
"""Reads the configuration.  Raises ConfigError."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line sets; it overrides the file.  insecure: a public address is allowed without keys."""

    host: str | None = None
    port: int | None = None
    demo: bool = False
    insecure: bool = False

    def over(self, config: Config) -> Config:
        told = {name: value for name, value in (("host", self.host), ("port", self.port)) if value is not None}
        config = config.model_copy(update={"listen": config.listen.model_copy(update=told)})
        return with_demo(config) if self.demo else config


def reader(path: Path, told: Overrides) -> Read:
    """A function that reads the file and applies what the command line overrides."""

    def read() -> tuple[Config, Source]:
        config, source = configuration.load(path, registry.problems_of)
        return told.over(config), source

    return read


def for_reload(read: Read, first: Config, insecure: bool) -> Read:
    """A function that reads the file for a reload, which cannot change `listen` and `database`.

    `listen` stays, because access rules depend on the real address; `database`, because running calls still write their
    records to it.
    """

    def again() -> tuple[Config, Source]:
        config, source = read()
        if config.listen != first.listen:
            log.warning("a change of `listen` requires a restart")
            config = config.model_copy(update={"listen": first.listen})
            if problems := configuration.contradictions(config, source):
                raise ConfigError(problems)
        if config.database != first.database:
            log.warning("a change of `database` requires a restart")
            config = config.model_copy(update={"database": first.database})
        check_exposure(config, source, insecure)
        return config, source

    return again


PLACES = {"ollama": None, "openai": None, "key": None, "options": ()}
"""The settings of an upstream that a simulated one does not have, with their empty values."""


def with_demo(config: Config) -> Config:
    """The same configuration with every upstream simulated."""
    upstreams = {
        name: upstream.model_copy(update={**PLACES, "demo": upstream.demo or configuration.Demo()})
        for name, upstream in config.upstreams.items()
    }
    return config.model_copy(update={"upstreams": upstreams})


class Watch:
    """Sets `again` when the file should be read again: after a SIGHUP, or because it has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen = mark(path)
        self.again = asyncio.Event()

    def hangup(self) -> None:
        self.seen = mark(self.path)  # so that a change that is read now does not cause a second reload
        self.again.set()

    async def looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            if self.changed():
                self.again.set()

    def changed(self) -> bool:
        """Whether time, size or inode of the file have changed since the last look; the inode shows editors that
        replace the file."""
        before, self.seen = self.seen, mark(self.path)
        return self.seen not in (before, None)

    async def next(self) -> None:
        await self.again.wait()
        self.again.clear()


def mark(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
