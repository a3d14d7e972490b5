"""Log lines: several processes write to one pipe."""

from __future__ import annotations

from typing import Literal

import pytest

from proxy.config import Log
from proxy.edge.exchange import Exchange
from proxy.logs import WHOLE, RequestLog, pieces, plain_line


@pytest.mark.parametrize(
    "lengths", [[10], [], [WHOLE - 1], [3000, 3000, 3000], [10, 9000, 10, 10], [9000], [1000] * 50]
)
def test_lines_are_written_whole_in_order_and_within_the_atomic_size_of_a_pipe(
    lengths: list[int],
) -> None:
    lines = [b"%d" % (number % 10) * length + b"\n" for number, length in enumerate(lengths)]
    written = list(pieces(b"".join(lines)))
    assert b"".join(written) == b"".join(lines)
    assert all(piece.endswith(b"\n") for piece in written if piece)
    assert all(len(piece) <= WHOLE or piece.count(b"\n") == 1 for piece in written)


@pytest.mark.parametrize(("level", "lines"), [("info", 2), ("debug", 4)])
async def test_successful_probes_are_logged_only_at_debug_level(level: Literal["info", "debug"], lines: int) -> None:
    written: list[bytes] = []
    log = RequestLog(Log(level=level), written.append)
    for path, status in (("/healthz", 200), ("/llm/readyz", 200), ("/readyz", 503), ("/v1/models", 200)):
        log(Exchange("id", {}, "GET", path, status=status))
    log.flush()
    assert b"".join(written).count(b"\n") == lines


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('"', '"\\""'),
        ("tab\there", '"tab\\there"'),
        ("line\nid=forged", '"line\\nid=forged"'),
        ("müde", '"m\\u00fcde"'),
        ("\x7f", "?"),
        (None, "None"),
        (1.5, "1.5"),
    ],
)
def test_values_in_a_log_line_are_escaped(value: object, shown: str) -> None:
    assert plain_line("now", {"id": "1", "given": value, "last": "x"}) == f"now id=1 given={shown} last=x\n".encode()
