"""A trainer's output is read as far as it is understood, within limits."""

from __future__ import annotations

import json

import pytest

from plugins.finetuning.measures import SOME, Measures
from plugins.finetuning.trainer import LONGEST, TAIL, OutputProtocol


def test_steps_losses_messages_and_checkpoints_are_read() -> None:
    measures = Measures()
    measures.hear(
        b'{"step": 5, "steps": 10, "loss": 0.5, "eval_loss": 1, "epoch": 1, "message": "half", "level": "warn"}'
    )
    measures.hear(b'{"checkpoint": "checkpoint-5", "tokens": 99}')
    assert (measures.done, measures.total, measures.trained) == (5, 10, 99)
    (measured, said), (mark,) = measures.taken()
    assert measured["message"] == "Step 5/10: training loss=0.5, validation loss=1"
    assert json.loads(measured["data"])["valid_loss"] == 1 and (said["message"], said["level"]) == ("half", "warn")
    assert (mark.name, mark.step) == ("checkpoint-5", 5) and measures.taken() == ([], [])


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"Loading weights: 100%",
        b"[1]",
        b'{"step": -1, "loss": "nan"}',
        b'{"step": 1e400}',
        b'{"step": true, "steps": 99999999999999999999}',
        b'{"message": 5, "checkpoint": {}}',
        b'{"loss": NaN}',
        b'{"loss": 1e300}',
        b"\xff\x00",
    ],
)
def test_other_output_is_ignored(line: bytes) -> None:
    measures = Measures()
    measures.hear(line)
    assert (measures.done, measures.total, *measures.taken()) == (0, 0, [], [])


def test_too_many_measures_are_thinned_out_and_the_last_is_kept() -> None:
    measures = Measures()
    for step in range(2000):
        measures.hear(json.dumps({"step": step, "loss": 1, "message": "\0x" * 600, "checkpoint": f"c{step}"}).encode())
    rows, marks = measures.taken()
    assert len(rows) <= 2 * SOME and len(marks) <= SOME and marks[-1].name == "c1999"
    assert {len(row["message"]) for row in rows if row["sample"] < 0} == {500}


def test_long_lines_are_cut_and_endless_ones_skipped() -> None:
    heard: list[bytes] = []
    said = OutputProtocol(heard.append)
    for part in (b"a\nb", b"c\n", b"x" * (LONGEST + 1), b"y" * LONGEST, b"z\nd\n", b"e"):
        said.take(part)
    assert heard == [b"a", b"bc", b"d"]
    said.complain(b"1" * TAIL)
    said.complain(b"2" * 10)
    assert said.tail == b"1" * (TAIL - 10) + b"2" * 10
