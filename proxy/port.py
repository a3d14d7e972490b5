"""A listening port that answers every connection it has accepted, even while closing; the limit of open files."""

import asyncio
import logging
import resource
from contextlib import suppress
from typing import Final

from aiohttp import web

log = logging.getLogger(__name__)
FILES: Final = 65_536
"""The limit of open files, connections included, that a process requests from the system."""
FEW: Final = 4096
"""A limit below this is logged."""
TURNS: Final = 3
"""Turns of the event loop between accepting a connection and its `connection_made`: one for asyncio's task, one for the
transport's callback, and one to run after both."""


class Port(web.TCPSite):
    """The port of a runner's server.  Once it has stopped, the server knows every connection that was accepted.

    asyncio alone forgets connections accepted in the last turn before `Server.close`, which stay open and unanswered,
    and those of the turn before reach aiohttp too late for its `cleanup`.
    """

    async def stop(self) -> None:
        await settled()  # accepts what waits in the system's queue
        if isinstance(self._server, asyncio.Server):  # uvloop has a class of its own, without this problem
            loop = asyncio.get_running_loop()
            for listening in self._server.sockets:
                loop.remove_reader(listening.fileno())
        await settled()
        await super().stop()


async def settled() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


def allow_files() -> None:
    """Raise the limit of open files as far as the system allows: uvloop closes further connections unanswered, and does
    not log it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if resource.RLIM_INFINITY != soft < most:
        with suppress(ValueError, OSError):  # macOS has a second, lower limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    if resource.RLIM_INFINITY != soft < FEW:
        log.warning("only %s files may be open (`ulimit -n`): connections beyond that are not answered", soft)
