"""How much work a chain is for the interpreter, counted and not timed: independent of the machine's other load.

`python -m tests.bench.counted usage,cache,retry`, with Python 3.12 or later, prints the bytecodes per whole answer in
that chain and in an empty one, and which functions make the difference.  Periodic work, such as writing records, is
included at random.
"""

# ruff: noqa: T201  (a command line prints)

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

from tests.bench import asks
from tests.bench.asks import FIRST, VARIED
from tests.bench.processes import CORES, Bench, bench, pin

CALLS: Final = 400
PATIENCE: Final = 60
SETTINGS: Final = {
    "cache": "{store: own}",
    "limits": "{limits: [{requests_per_minute: 100000000, tokens_per_minute: 100000000000}]}",
}
"""Settings of plugins that do more with some; all others use their defaults."""


def main() -> int:
    if sys.version_info < (3, 12):
        print("counting needs Python 3.12 or later", file=sys.stderr)
        return 1
    whole = argparse.ArgumentParser("python -m tests.bench.counted", description=__doc__)
    whole.add_argument("chain", help="names of plugins with commas between them")
    whole.add_argument("--most", type=int, default=40, help="functions that are shown, by default 40")
    told = whole.parse_args()
    with tempfile.TemporaryDirectory() as folder, bench(Path(folder)) as running:
        pin(set(CORES))  # no need for a separate core: nothing is timed
        empty, full = (counted(running, chain) for chain in ("", ", ".join(told.chain.split(","))))
    more = Counter(full)
    more.subtract(empty)
    print(f"empty chain {total(empty):.0f}, {told.chain} {total(full):.0f} bytecodes an answer; of these the most:")
    for name, count in more.most_common(told.most):
        print(f"{count / CALLS:8.1f}  {name}")
    return 0


def total(counts: Counter[str]) -> float:
    return counts.total() / CALLS


def counted(running: Bench, chain: str) -> Counter[str]:
    """Bytecodes by function, for CALLS answers."""
    file = running.folder / f"counts-{len(chain)}"
    names = [name for name in chain.split(", ") if name]
    more = (
        f"database: {{url: 'sqlite:///{file}.db'}}\nstores: {{own: {{memory: {{max_bytes: 20000000}}}}}}\n"
        f"plugins: {{{', '.join(f'{name}: {SETTINGS.get(name, {})}' for name in names)}}}\n"
    )
    counting = replace(running, module=("tests.bench.counting", str(file)))
    with counting.proxy(chain, more=more) as server:
        asked(server.port, FIRST)  # warm up: the interpreter specialises its bytecode, and caches fill
        server.popen.send_signal(signal.SIGUSR2)
        time.sleep(0.5)
        asked(server.port, FIRST + CALLS)
        server.popen.send_signal(signal.SIGUSR2)
        limit = time.monotonic() + PATIENCE
        while not file.exists():
            if time.monotonic() > limit:
                raise RuntimeError("the server does not tell what it has counted")
            time.sleep(0.1)
    found: Counter[str] = Counter()
    for line in file.read_text().splitlines():
        count, _, name = line.split("\t")
        found[name] += int(count)
    return found


def asked(port: int, first: int) -> None:
    """Every question is different."""
    ask, connection = asks.openai(), HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    for number in range(first, first + CALLS):
        body = ask.body.replace(VARIED, str(number))
        connection.request("POST", ask.path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        told = response.read()
        if response.status != 200:
            raise RuntimeError(told.decode()[:500])
    connection.close()


if __name__ == "__main__":
    sys.exit(main())
