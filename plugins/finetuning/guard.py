"""Runs between the server and a trainer: a script that runs a command, and ends it together with all its children.

It imports nothing from the server.  Its standard input is a pipe that the server holds open.  When the pipe closes,
on purpose or because the server was killed, the command's whole process group gets SIGTERM, and then SIGKILL.

Arguments: the seconds that the command may take to end after SIGTERM, and the command.
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
    """In the child: have the kernel kill it if this process is killed."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(DEATHS_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # this process is dead already
            os._exit(NOT_STARTED)


def tell(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def end(child: subprocess.Popen[bytes], grace: float, told: SimpleQueue[None]) -> None:
    """When told to, ask the child's process group to end, and kill it after the grace period."""
    told.get()
    tell(child.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(grace)
    tell(child.pid, signal.SIGKILL)


def watch(told: SimpleQueue[None]) -> None:
    """Wait until the server closes the pipe."""
    while os.read(0, 1024):
        pass
    told.put(None)


def main(grace: float, command: list[str]) -> int:
    told = SimpleQueue[None]()
    # Before the child exists: if this process died of the signal, the child's descendants would survive.
    signal.signal(signal.SIGTERM, lambda *_: told.put(None))
    try:
        child = subprocess.Popen(  # noqa: S603 -- the operator configured the command
            command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=partial(dies_with, os.getpid())
        )
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return NOT_STARTED
    # In a thread: the main thread holds the child's waiting lock.
    threading.Thread(target=end, args=(child, grace, told), daemon=True).start()
    threading.Thread(target=watch, args=(told,), daemon=True).start()
    status = child.wait()
    tell(child.pid, signal.SIGKILL)  # descendants that it has left behind
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    code = main(float(sys.argv[1]), sys.argv[2:])
    sys.stderr.flush()
    os._exit(code)  # the thread may still be blocked in a read
