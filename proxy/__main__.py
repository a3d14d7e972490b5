"""The command, from its first line on."""

import gc
import sys


def main() -> int:
    """Runs it.  While its modules are imported nothing is thrown away, so that the collector need not look for it."""
    gc.disable()
    try:
        from proxy import cli
    finally:
        gc.enable()
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
