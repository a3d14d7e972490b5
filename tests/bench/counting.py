"""The proxy with its bytecodes counted, from one SIGUSR2 to the next, by function.

`python -m tests.bench.counting FILE serve --config …`: the file is written at the second signal, one line per
function: its bytecodes, the number of its calls, and its name.
"""

from __future__ import annotations

import signal
import sys
from collections import Counter
from pathlib import Path
from types import CodeType

from proxy.__main__ import main

TOOL = 3
"""A tool id of `sys.monitoring` that has no predefined use."""


class Counts:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.done: Counter[CodeType] = Counter()
        self.begun: Counter[CodeType] = Counter()

    def flip(self, *_: object) -> None:
        """Start counting, or write the counts."""
        if sys.version_info < (3, 12):
            raise RuntimeError("counting needs Python 3.12 or later")
        events = sys.monitoring.events
        if sys.monitoring.get_tool(TOOL) is None:
            sys.monitoring.use_tool_id(TOOL, "counts")
            sys.monitoring.register_callback(TOOL, events.INSTRUCTION, self.instruction)
            sys.monitoring.register_callback(TOOL, events.PY_START, self.start)
            sys.monitoring.set_events(TOOL, events.INSTRUCTION | events.PY_START)
            return
        sys.monitoring.set_events(TOOL, 0)
        lines = [f"{count}\t{self.begun[code]}\t{name_of(code)}\n" for code, count in self.done.items()]
        whole = self.file.with_suffix(".whole")
        whole.write_text("".join(lines))
        whole.rename(self.file)

    def instruction(self, code: CodeType, _: int) -> None:
        self.done[code] += 1

    def start(self, code: CodeType, _: int) -> None:
        self.begun[code] += 1


def name_of(code: CodeType) -> str:
    return f"{'/'.join(Path(code.co_filename).parts[-3:])}:{code.co_firstlineno} {code.co_qualname}"


if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, Counts(Path(sys.argv.pop(1))).flip)
    sys.exit(main())
