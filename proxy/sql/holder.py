"""Who does a job that several processes could do: by what it signs, and whether it still lives."""

from __future__ import annotations

import os
import socket


class Holder:
    """server: an id that no other server has, nor this one after a restart."""

    def __init__(self, server: str) -> None:
        self.here = f"{socket.gethostname()}:"
        """How the names of all processes of this machine begin."""
        self.name = f"{self.here}{os.getpid()}:{server}"

    def dead(self, holder: str) -> bool:
        """Whether it is a process of this machine that has ended: then nobody need wait for its lease."""
        if holder == self.name or not holder.startswith(self.here):
            return False
        process = int(holder.split(":")[-2])
        if process == os.getpid():  # in a container every server has the same
            return True
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False
