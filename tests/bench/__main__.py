"""Measures the proxy against its bounds: `python -m tests.bench [part …]`."""

# ruff: noqa: T201  (a command line prints)

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.bench.caching import CACHING
from tests.bench.parts import KERNEL, Length
from tests.bench.peers import PEERS
from tests.bench.processes import CORES, Bench, bench
from tests.bench.records import RECORDS
from tests.bench.report import Found, averaged, table
from tests.bench.surface import SURFACE
from tests.bench.talking import TALKING

PARTS = {**KERNEL, **SURFACE, **CACHING, **RECORDS, **TALKING, **PEERS}


def main() -> int:
    told = parser().parse_args()
    if unknown := set(told.parts) - set(PARTS):
        parser().error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if len(CORES) < 2:
        print("two cores are needed: one for the load, one for the server", file=sys.stderr)
        return 1
    found: list[Found] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder, bench(Path(folder)) as running:
        for part in told.parts or PARTS:
            for start in range(1, told.starts + 1):
                print(f"{part}, start {start} of {told.starts}", flush=True)
                measured(part, running, Length(told.rounds, told.seconds), found, failed)
    found = averaged(found)
    print("", table(found), *failed, sep="\n")
    return 1 if failed or not all(one.met for one in found) else 0


def measured(part: str, running: Bench, length: Length, found: list[Found], failed: list[str]) -> None:
    """Measure one part in an empty folder; a failure is reported at the end, and the other parts still run."""
    with tempfile.TemporaryDirectory(dir=running.folder) as folder:
        try:
            found += PARTS[part](replace(running, folder=Path(folder)), length)
        except RuntimeError as error:
            failed.append(f"{part} FAILED: {error}")


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser("python -m tests.bench", description=__doc__)
    whole.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all when none is named")
    whole.add_argument("--starts", type=int, default=3, help="of new processes, which differ by some %%; by default 3")
    whole.add_argument("--rounds", type=int, default=6, help="of every server in turn in each start, by default 6")
    whole.add_argument("--seconds", type=int, default=1, help="of one server in one round, by default 1")
    return whole


if __name__ == "__main__":
    sys.exit(main())
