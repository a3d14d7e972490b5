"""Stands between the server and a trainer: run as a script, it runs a command and ends it with all its children.

It imports nothing of the server.  Its standard input is a pipe that the server holds open: when that ends, because the
server wants it so or was killed itself, the command's whole group is told to end, and killed if it does not.

Arguments: the seconds that the command may take to end, and the command.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from queue import SimpleQueue

NOT_STARTED = 127
DEATHS_SIGNAL = 1
"""Linux's PR_SET_PDEATHSIG."""


def dies_with(parent: int) -> None:
    """Should this program be killed, the command is, too."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(DEATHS_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it was killed already
            os._exit(NOT_STARTED)


def tell(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def end(child: subprocess.Popen[bytes], grace: float, told: SimpleQueue[None]) -> None:
    """Once it is told, the child's group is asked to end, and made to."""
    told.get()
    tell(child.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(grace)
    tell(child.pid, signal.SIGKILL)


def watch(told: SimpleQueue[None]) -> None:
    """Until the server has nothing more to do with it."""
    while os.read(0, 1024):
        pass
    told.put(None)


def main(grace: float, command: list[str]) -> int:
    told = SimpleQueue[None]()
    # Before there is a child: its children would live on if this ended by the signal.
    signal.signal(signal.SIGTERM, lambda *_: told.put(None))
    try:
        child = subprocess.Popen(  # noqa: S603 -- it is the operator's
            command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=partial(dies_with, os.getpid())
        )
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return NOT_STARTED
    # Beside the main thread, which holds a lock of the child's while it waits for it.
    threading.Thread(target=end, args=(child, grace, told), daemon=True).start()
    threading.Thread(target=watch, args=(told,), daemon=True).start()
    status = child.wait()
    tell(child.pid, signal.SIGKILL)  # whatever it has left behind
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    code = main(float(sys.argv[1]), sys.argv[2:])
    sys.stderr.flush()
    os._exit(code)  # the thread may still be reading
