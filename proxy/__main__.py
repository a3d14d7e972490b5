"""The program's entry point, which prepares signals and garbage collection before it imports the rest."""

import gc
import signal
import sys
from typing import Final

SERVING: Final = ("serve", "worker")


def main() -> int:
    """Run the command line.  The garbage collector is off during the imports, because they create no garbage."""
    if sys.argv[1:2] and sys.argv[1] in SERVING:
        # By default SIGHUP ends a process, and systemd treats that as a clean exit: a reload of a server that is still
        # starting would stop it.  It can be ignored, because the file has not been read yet.
        signal.signal(signal.SIGHUP, lambda *_: None)
    gc.disable()
    try:
        from proxy import cli
    finally:
        gc.enable()
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
