"""Lines of several processes on one pipe."""

from __future__ import annotations

import pytest

from proxy.logs import WHOLE, pieces


@pytest.mark.parametrize(
    "lengths", [[10], [], [WHOLE - 1], [3000, 3000, 3000], [10, 9000, 10, 10], [9000], [1000] * 50]
)
def test_lines_are_written_whole_and_in_order_and_never_more_at_once_than_a_pipe_keeps_together(
    lengths: list[int],
) -> None:
    lines = [b"%d" % (number % 10) * length + b"\n" for number, length in enumerate(lengths)]
    written = list(pieces(b"".join(lines)))
    assert b"".join(written) == b"".join(lines)
    assert all(piece.endswith(b"\n") for piece in written if piece)
    assert all(len(piece) <= WHOLE or piece.count(b"\n") == 1 for piece in written)
