"""A port that loses nothing of what it has let in."""

import asyncio
import logging
import resource
from contextlib import suppress
from typing import Final

from aiohttp import web

log = logging.getLogger(__name__)
FILES: Final = 65_536
"""Open files, connections among them, that a process asks the system for."""
FEW: Final = 4096
"""Of them, fewer than which are told of."""
TURNS: Final = 3
"""Of an event loop, from accepting a connection to telling its protocol: one for a task of asyncio's, one for the
transport's call, one to come after both."""


class Port(web.TCPSite):
    """Leads to a runner's server.

    When it stops, all that was let in is known to the server: asyncio drops, open and unanswered, what it has accepted
    in the last turn before `Server.close`, and what came in the turn before that is too late for aiohttp's `cleanup`.
    """

    async def stop(self) -> None:
        await settled()  # what waits in the system's queue is let in
        if isinstance(self._server, asyncio.Server):  # uvloop's is another, and has no such gap
            loop = asyncio.get_running_loop()
            for listening in self._server.sockets:
                loop.remove_reader(listening.fileno())
        await settled()
        await super().stop()


async def settled() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


def allow_files() -> None:
    """As many as the system grants: what comes beyond uvloop closes, unanswered and without a word."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if resource.RLIM_INFINITY != soft < most:
        with suppress(ValueError, OSError):  # macOS has a limit besides
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    if resource.RLIM_INFINITY != soft < FEW:
        log.warning("only %s files may be open (`ulimit -n`): connections beyond that are not answered", soft)
