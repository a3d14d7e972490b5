"""The program, which is told what to do before it has imported anything."""

import gc
import signal
import sys
from typing import Final

SERVING: Final = ("serve", "worker")


def main() -> int:
    """Runs it.  While its modules are imported nothing is thrown away, so that the collector need not look for it."""
    if sys.argv[1:2] and sys.argv[1] in SERVING:
        # By default a hangup ends a process, and systemd takes that for a wanted end: whoever reloads what is just
        # starting would be left without it.  Nothing is lost; the file has not been read yet.
        signal.signal(signal.SIGHUP, lambda *_: None)
    gc.disable()
    try:
        from proxy import cli
    finally:
        gc.enable()
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
