"""The program, which is told what to do before it has imported anything."""

import signal
import sys
from typing import Final

SERVING: Final = ("serve", "worker")


def main() -> int:
    if sys.argv[1:2] and sys.argv[1] in SERVING:
        # By default a hangup ends a process, and systemd takes that for a wanted end: whoever reloads what is just
        # starting would be left without it.  Nothing is lost; the file has not been read yet.
        signal.signal(signal.SIGHUP, lambda *_: None)
    from proxy.cli import main as told

    return told()


if __name__ == "__main__":
    sys.exit(main())
